# Stand-in for Windows on a UEFI PC: a PE32+ application laid out by hand. Says on port 0x504 what the TPM had measured when
# it was booted (if there is one), that it was booted, says so on the console, and halts. It calls no boot service but
# OutputString, so it can change neither disk nor variables, and asks the TPM only to read.
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
    .long 0x400, 0, 0           # sizes of code, data, zeros
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
    .long 0x400, 0x1000         # size in memory, address
    .long 0x400, 0x200          # size in the file, offset
    .long 0, 0, 0
    .long 0x60000020            # code, executable, readable
    .org 0x200, 0
code:
entry:
    sub rsp, 40
    mov rbx, rdx                # the system table
    call report_pcrs
    lea rsi, verdict[rip]
    call say
    mov rcx, [rbx + 64]         # ConOut
    lea rdx, message[rip]
    call [rcx + 8]              # OutputString
    cli
3:  hlt
    jmp 3b

# Text at rsi to the verdict port.
say:
    mov edx, 0x504
1:  lodsb
    test al, al
    jz 2f
    out dx, al
    jmp 1b
2:  ret

# Low four bits of al as a hex digit.
digit:
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe 1f
    add al, 'a' - '0' - 10
1:  out dx, al
    ret

# TPM2_PCR_Read over the TIS registers (TCG PC Client Platform TPM Profile, 6.5): the whole answer as a line of hex.
report_pcrs:
    mov edi, 0xfed40000
    mov al, [rdi]               # TPM_ACCESS
    cmp al, 0xff
    je 9f                       # nothing there: all ones, or zeros
    test al, 0x80               # valid
    jz 9f
    mov byte ptr [rdi], 2       # request use
1:  test byte ptr [rdi], 0x20   # active locality
    jz 1b
    mov byte ptr [rdi + 0x18], 0x40 # TPM_STS: command ready
2:  test byte ptr [rdi + 0x18], 0x40
    jz 2b
    lea rsi, command[rip]
    mov ecx, command_end - command
3:  lodsb
    mov [rdi + 0x24], al        # TPM_DATA_FIFO
    dec ecx
    jnz 3b
    mov byte ptr [rdi + 0x18], 0x20 # go
4:  mov al, [rdi + 0x18]
    and al, 0x90                # valid, data available
    cmp al, 0x90
    jne 4b
    lea rsi, label[rip]
    call say
5:  mov cl, [rdi + 0x24]
    mov al, cl
    shr al, 4
    call digit
    mov al, cl
    call digit
    mov al, [rdi + 0x18]
    test al, 0x10               # more data
    jnz 5b
    mov byte ptr [rdi + 0x18], 0x40
    mov byte ptr [rdi], 0x20    # give the locality back
    mov al, 10
    out dx, al
9:  ret

command:
    .byte 0x80, 0x01            # no sessions
    .byte 0, 0, 0, 20           # size
    .byte 0, 0, 0x01, 0x7e      # TPM2_CC_PCR_Read
    .byte 0, 0, 0, 1            # one selection
    .byte 0, 0x0b               # SHA-256
    .byte 3, 0x95, 0, 0         # PCRs 0, 2, 4, 7
command_end:
label:
    .asciz "pcrs "
verdict:
    .asciz "windows\n"
    .balign 2
message:
    .string16 "\r\nThis is the stand-in for Windows (UEFI).\r\n"
    .org 0x600, 0
