# Stand-in for Windows on a BIOS PC: the code of a master boot record. Says on port 0x504 that it was booted, says so on
# the screen, and halts. It reads and writes no disk.
    .code16
    .intel_syntax noprefix
    .globl _start
_start:
    cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
    cld
    mov si, offset verdict
    mov dx, 0x504
1:  lodsb
    test al, al
    jz 2f
    out dx, al
    jmp 1b
2:  sti
    mov si, offset message
3:  lodsb
    test al, al
    jz 4f
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    jmp 3b
4:  cli
5:  hlt
    jmp 5b
verdict:
    .asciz "windows\n"
message:
    .asciz "\r\nThis is the stand-in for Windows (BIOS).\r\n"
