//! From the PVH entry (32 bits, no paging; Xen's docs/misc/pvh.pandoc) to Rust: long mode, the first
//! 512 GiB of addresses as they are, floating point registers, a stack.

use core::arch::global_asm;

// The note's type is XEN_ELFNOTE_PHYS32_ENTRY. `ebx` holds the start information at the entry.
global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad entry32

    .section .text.boot, "ax", @progbits
    .code32
    .globl entry32
entry32:
    cli
    cld
    movl $boot_stack_top, %esp
    movl $boot_pdpt, %eax
    orl $3, %eax
    movl %eax, boot_pml4
    xorl %ecx, %ecx
1:  # A page of 1 GiB: present, writable, large.
    movl %ecx, %eax
    shll $30, %eax
    orl $0x83, %eax
    movl %eax, boot_pdpt(,%ecx,8)
    movl %ecx, %eax
    shrl $2, %eax
    movl %eax, boot_pdpt+4(,%ecx,8)
    incl %ecx
    cmpl $512, %ecx
    jne 1b
    # CR4: PAE, and OSFXSR and OSXMMEXCPT for SSE.
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    # EFER.LME.
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    # CR0: paging, MP; no emulation of the floating point unit.
    movl %cr0, %eax
    andl $~4, %eax
    orl $0x80000002, %eax
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmpl $8, $entry64

    .code64
entry64:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $boot_stack_top, %esp
    movl %ebx, %edi
    call start
2:  hlt
    jmp 2b

    # What the compiled core library names for unwinding, which nobody does here.
    .globl rust_eh_personality
rust_eh_personality:
    ud2

    .section .rodata.boot, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff
    .quad 0x00cf92000000ffff
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .long boot_gdt

    .section .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_stack: .skip 65536
boot_stack_top:
    .code64
    .text
    "#,
    options(att_syntax)
);
