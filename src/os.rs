//! The only unsafe code: a handful of system calls that no crate of ours offers.

#![allow(
    unsafe_code,
    reason = "system calls without a safe wrapper; each block says why it is sound"
)]

use std::os::fd::{AsFd, AsRawFd};

/// Bytes and FIN that the peer of a TCP socket has not acknowledged (`TIOCOUTQ`, `tcp(7)`: for TCP
/// it counts from the oldest unacknowledged to the newest sequence number, and FIN takes one).
/// `None` when the kernel will not say.
pub fn unacknowledged(socket: &impl AsFd) -> Option<usize> {
    let mut queued: libc::c_int = 0;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: TIOCOUTQ writes one int through the pointer, which is valid for that during the call;
    // the descriptor is open because it is borrowed.
    let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut queued) };
    if result == 0 { usize::try_from(queued).ok() } else { None }
}

/// Whether an accept failed because descriptors or memory ran out: the connection is still queued.
pub fn is_exhausted(error: &std::io::Error) -> bool {
    let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| exhausted.contains(&code))
}

/// How many descriptors this process may have open: the soft `RLIMIT_NOFILE`.
pub fn descriptors_max() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the struct behind the pointer, which is valid during the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 1024 }
}

/// Gives free memory of every heap back to the system. Slow (milliseconds for a hundred megabytes)
/// and it locks each heap in turn: for a thread of its own, after a burst.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointers and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has the kernel drop, without an answer, every SYN for a listening TCP socket; handshakes that
/// have
/// begun are completed. A classic BPF program on the socket (`socket(7)`, `SO_ATTACH_FILTER`): it
/// sees each segment from its TCP header on, whose byte 13 holds the flags (RFC 9293, 3.1).
///
/// # Errors
/// `EPERM` on kernels that ask for a privilege here.
pub fn drop_syns(listener: &impl AsFd) -> std::io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_ACK: u32 = 0x12;
    const ALL: u32 = u32::MAX;
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("BPF codes have 16 bits"),
        jt,
        jf,
        k,
    };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN_ACK),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, ALL),
    ];
    let attached = libc::sock_fprog { len: 5, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).expect("16 bytes");
    // SAFETY: the kernel copies the program of `len` instructions behind the pointer during the
    // call, and both live that long; the descriptor is open because it is borrowed.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const attached).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
