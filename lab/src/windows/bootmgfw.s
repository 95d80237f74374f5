# Stand-in for Windows on a UEFI PC: a PE32+ application laid out by hand. Says on port 0x504 that it was booted, says so
# on the console, and halts. It calls no boot service but OutputString, so it can change neither disk nor variables.
    .intel_syntax noprefix
    .code64
    .globl _start
_start:
base:
    .ascii "MZ"
    .zero 58
    .long pe - base
pe: .ascii "PE\0\0"
    .short 0x8664               # x86-64
    .short 1                    # sections
    .long 0, 0, 0               # time stamp, symbols
    .short optional_end - optional
    .short 0x0022               # executable, large addresses
optional:
    .short 0x020b               # PE32+
    .byte 0, 0
    .long 0x200, 0, 0           # sizes of code, data, zeros
    .long 0x1000 + entry - code # entry point
    .long 0x1000                # base of code
    .quad 0                     # image base
    .long 0x1000, 0x200         # alignment in memory, in the file
    .short 0, 0, 0, 0, 0, 0     # versions
    .long 0
    .long 0x2000                # size in memory
    .long 0x200                 # size of headers
    .long 0                     # checksum
    .short 10                   # EFI application
    .short 0x0100               # may run with no-execute data
    .quad 0, 0, 0, 0            # stack and heap
    .long 0
    .long 16                    # directories: sbsign fills number 4
    .zero 16 * 8
optional_end:
    .ascii ".text\0\0\0"
    .long 0x200, 0x1000         # size in memory, address
    .long 0x200, 0x200          # size in the file, offset
    .long 0, 0, 0
    .long 0x60000020            # code, executable, readable
    .org 0x200, 0
code:
entry:
    sub rsp, 40
    mov rbx, rdx                # the system table
    lea rsi, verdict[rip]
    mov edx, 0x504
1:  lodsb
    test al, al
    jz 2f
    out dx, al
    jmp 1b
2:  mov rcx, [rbx + 64]         # ConOut
    lea rdx, message[rip]
    call [rcx + 8]              # OutputString
    cli
3:  hlt
    jmp 3b
verdict:
    .asciz "windows\n"
    .balign 2
message:
    .string16 "\r\nThis is the stand-in for Windows (UEFI).\r\n"
    .org 0x400, 0
