//! A filter that keeps a task's files in the project whose quota bounds them, and changes nothing else. Pure.
//!
//! Unlike the other filters it leaves 32-bit programs alone, so it knows their numbers too.

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_K, BPF_LD, BPF_W, sock_filter};

use super::program::{AUDIT_ARCH, FIRST_X32, OFFSET_ARCH, OFFSET_NR, Verdict, jump, ret, statement};
use crate::kernel::quota::{FORBIDDEN_IOCTLS, SYS_FILE_SETATTR};

/// `AUDIT_ARCH_I386` of linux/audit.h.
pub(super) const AUDIT_ARCH_I386: u32 = 3 | 0x4000_0000;
/// The low half of the second argument in `struct seccomp_data`: the request of an ioctl.
const OFFSET_REQUEST: u32 = 24;
/// ioctl(2) of 64-bit programs, of x32 without its mark, and of i386.
const IOCTL: u32 = 16;
const IOCTL_X32: u32 = 514;
const IOCTL_I386: u32 = 54;

#[expect(clippy::cast_possible_truncation, reason = "errno numbers and the requests of ioctl are small")]
pub(super) fn program() -> Vec<sock_filter> {
    let load = |offset| vec![statement(BPF_LD | BPF_W | BPF_ABS, offset)];
    let (allow, refuse) = (vec![ret(Verdict::ALLOW)], vec![ret(Verdict::errno(libc::EPERM as u16))]);
    let requests = FORBIDDEN_IOCTLS.iter().flat_map(|request| when(*request as u32, &refuse)).collect();
    let ioctl = [load(OFFSET_REQUEST), requests, allow.clone()].concat();
    let calls = |ioctls: &[u32]| {
        let ioctls = ioctls.iter().flat_map(|number| when(*number, &ioctl)).collect();
        [ioctls, when(SYS_FILE_SETATTR, &refuse), allow.clone()].concat()
    };
    let unmark = vec![statement(BPF_ALU | BPF_AND | BPF_K, !FIRST_X32)];
    let native = [load(OFFSET_NR), unmark, calls(&[IOCTL, IOCTL_X32])].concat();
    let i386 = [load(OFFSET_NR), calls(&[IOCTL_I386])].concat();
    // This processor has no others.
    let other = vec![ret(Verdict::KILL_PROCESS)];
    [load(OFFSET_ARCH), when(AUDIT_ARCH, &native), when(AUDIT_ARCH_I386, &i386), other].concat()
}

/// The code, which must not go on behind its end, for this value in the accumulator.
fn when(value: u32, code: &[sock_filter]) -> Vec<sock_filter> {
    // All of the program is shorter than the farthest jump.
    let over = u8::try_from(code.len()).unwrap_or(u8::MAX);
    [&[jump(BPF_JEQ, value, 0, over)], code].concat()
}
