//! What the compiler calls by name to move memory, and no library brings here.

use core::arch::global_asm;

global_asm!(
    r#"
    .text
    .globl memcpy
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret

    .globl memmove
memmove:
    movq %rdi, %rax
    movq %rdx, %rcx
    cmpq %rsi, %rdi
    jbe 1f
    # From the end downwards: the target may begin within the source.
    leaq -1(%rsi,%rdx), %rsi
    leaq -1(%rdi,%rdx), %rdi
    std
    rep movsb
    cld
    ret
1:  rep movsb
    ret

    .globl memset
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret

    .globl memcmp
    .globl bcmp
memcmp:
bcmp:
    xorl %eax, %eax
    testq %rdx, %rdx
    je 2f
    movq %rdx, %rcx
    repe cmpsb
    movzbl -1(%rdi), %ecx
    movzbl -1(%rsi), %edx
    movl %ecx, %eax
    subl %edx, %eax
2:  ret
    "#,
    options(att_syntax)
);
