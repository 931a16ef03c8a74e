//! The only unsafe code: a handful of system calls that no crate of ours offers.

#![allow(
    unsafe_code,
    reason = "system calls without a safe wrapper; each block says why it is sound"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Connections that wait to be accepted from a listening TCP socket (`tcpi_unacked` of one that
/// listens: `tcp_get_info` in Linux's `net/ipv4/tcp.c`). `None` when the kernel will not say.
pub fn queued(listener: &impl AsFd) -> Option<u32> {
    // The beginning of `struct tcp_info`, up to `tcpi_unacked`: the kernel writes no more than is
    // asked for.
    let mut info = [0_u32; 7];
    let mut size = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes to `info`, which has so many, and to `size`
    // how many they were; both pointers are valid during the call, and the descriptor is open
    // because it is borrowed.
    let result = unsafe {
        let to = info.as_mut_ptr().cast();
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut size)
    };
    (result == 0 && size as usize == size_of_val(&info)).then_some(info[6])
}

/// Whether an accept failed because descriptors or memory ran out: the connection is still queued.
pub fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| exhausted.contains(&code))
}

/// Whether something failed because a descriptor is not open.
pub fn is_bad_descriptor(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADF)
}

/// How many descriptors this process may have open: the soft `RLIMIT_NOFILE`.
pub fn descriptors_max() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the struct behind the pointer, which is valid during the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 1024 }
}

/// Raises the soft `RLIMIT_NOFILE` of this process to the hard one: how many descriptors it may
/// have open, and so how many connections. Many systems and containers start processes with a soft
/// limit of 1,024 and a far higher hard one, for the sake of `select(2)`, which nothing here uses.
/// For `main`, before a server is bound; children that are started later inherit it.
///
/// # Errors
/// When the kernel, or a filter of system calls, refuses; the limit then stays as it is.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the struct behind the pointer, which is valid during the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= limit.rlim_max {
        return Ok(());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit reads the struct behind the pointer, which is valid during the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
/// have begun are completed. A classic BPF program on the socket (`socket(7)`, `SO_ATTACH_FILTER`):
/// it sees each segment from its TCP header on, whose byte 13 holds the flags (RFC 9293, 3.1).
///
/// # Errors
/// `EPERM` on kernels that ask for a privilege here.
pub fn drop_syns(listener: &impl AsFd) -> io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_ACK: u32 = 0x12;
    const ALL: u32 = u32::MAX;
    let program = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN_ACK),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, ALL),
    ];
    attach(listener, libc::SO_ATTACH_FILTER, program)
}

/// Has the kernel give new connections to a successor on the same port.
///
/// The TCP sockets that listen on one port with `SO_REUSEPORT` are numbered in the order in which
/// they began to: ours, `first` of them, then the successor's. A classic BPF program of the whole
/// group (`socket(7)`, `SO_ATTACH_REUSEPORT_CBPF`) answers each SYN with the number of the socket
/// that gets it: here a random one of the `count` from `first` on. A number that no socket has
/// leaves the choice to the kernel's hash over all of them, as if there were no program: so without
/// a successor nothing changes. No privilege is needed. The program stays with the group when this
/// process is gone: a third generation gets every new connection from its first moment on.
///
/// # Errors
/// `EINVAL` for a socket without `SO_REUSEPORT`, or when `count` is 0.
pub fn steer_to_successor(listener: &impl AsFd, first: u32, count: u32) -> io::Result<()> {
    let random = libc::SKF_AD_OFF + libc::SKF_AD_RANDOM;
    let program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, random.cast_unsigned()),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, count),
        step(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, 0, 0, first),
        step(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ];
    attach(listener, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

/// Takes the program of [`steer_to_successor`] from the group that a socket belongs to (Linux 5.3).
///
/// # Errors
/// `ENOENT` when there is none.
pub fn unsteer(listener: &impl AsFd) -> io::Result<()> {
    // The kernel asks for a value, and does not look at it.
    let none: libc::c_int = 0;
    set_option(listener, libc::SO_DETACH_REUSEPORT_BPF, &none)
}

fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    let code = u16::try_from(code).expect("BPF codes have 16 bits");
    libc::sock_filter { code, jt, jf, k }
}

fn attach<const LEN: usize>(
    socket: &impl AsFd,
    option: libc::c_int,
    mut program: [libc::sock_filter; LEN],
) -> io::Result<()> {
    let len = u16::try_from(LEN).expect("a program of ours has a handful of instructions");
    // The kernel copies the `len` instructions during the call, for which `program` lives.
    set_option(socket, option, &libc::sock_fprog { len, filter: program.as_mut_ptr() })
}

/// Sets an option of the socket level whose value is a plain struct or an int.
fn set_option<T>(socket: &impl AsFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).expect("a few bytes");
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `size` bytes through the pointer during the call, which is valid for
    // that, and what the struct points to in turn as the caller says; the descriptor is open
    // because it is borrowed.
    let result = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether `fd` is open in this process.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer; of a descriptor that is not open it says so.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Makes the descriptors of `passed` ours, which the process that started this one passed on and
/// said so (`sd_listen_fds(3)`: `LISTEN_PID` is our process id). Each is looked at by `check`
/// before. Works once in the life of a process.
///
/// # Errors
/// When it was called before. Those of `check`, with the descriptor.
pub fn adopt<E>(
    passed: impl Iterator<Item = RawFd>,
    check: impl Fn(BorrowedFd<'_>) -> Result<(), E>,
) -> Result<Vec<(RawFd, OwnedFd)>, Adopting<E>> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Err(Adopting::Again);
    }
    let adopt_one = |fd| {
        if !is_open(fd) {
            return Err(Adopting::Closed(fd));
        }
        // SAFETY: it is open, and nothing closes it during the look: what was passed on belongs to
        // nobody in this process before it is adopted.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        check(borrowed).map_err(|error| Adopting::Unfit(fd, error))?;
        // SAFETY: it is open, and what was passed on to this process is owned by nobody in it;
        // that it gets only one owner here is what the switch above is for.
        Ok((fd, unsafe { OwnedFd::from_raw_fd(fd) }))
    };
    passed.map(adopt_one).collect()
}

/// Why descriptors were not adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adopting<E> {
    /// They have an owner: this is not the first call.
    Again,
    /// This one is not open.
    Closed(RawFd),
    /// This one is not what was expected.
    Unfit(RawFd, E),
}
