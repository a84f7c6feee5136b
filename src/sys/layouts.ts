/**
 * The numbers of the Linux socket API on x64 and arm64: constants, and the offsets of struct members in
 * octets. They are the same under glibc and musl. `test/sys/layouts.test.ts` compares each of them with the C
 * compiler's.
 */

/**
 * By the headers that define them. The values are those of the generic ABI, which both architectures share.
 */
export const headers = {
  // <sys/socket.h>, socket(2), listen(2), recv(2), shutdown(2)
  AF_UNIX: 1,
  AF_INET: 2,
  AF_INET6: 10,
  SOCK_STREAM: 1,
  SOCK_DGRAM: 2,
  SOCK_NONBLOCK: 0o4000,
  SOCK_CLOEXEC: 0o2000000,
  SOL_SOCKET: 1,
  SO_REUSEADDR: 2,
  SO_TYPE: 3,
  SO_SNDBUF: 7,
  SO_RCVBUF: 8,
  SO_KEEPALIVE: 9,
  SO_RCVTIMEO: 20,
  SO_SNDTIMEO: 21,
  SO_ACCEPTCONN: 30,
  MSG_DONTWAIT: 0x40,
  MSG_NOSIGNAL: 0x4000,
  SHUT_RD: 0,
  SHUT_WR: 1,
  SHUT_RDWR: 2,
  // <netinet/in.h>, ipv6(7); <netinet/tcp.h>, tcp(7)
  IPPROTO_TCP: 6,
  IPPROTO_IPV6: 41,
  IPV6_V6ONLY: 26,
  TCP_NODELAY: 1,
  TCP_INFO: 11,
  // <poll.h>, poll(2)
  POLLIN: 0x1,
  POLLERR: 0x8,
  POLLHUP: 0x10,
  // <sys/epoll.h>, epoll_ctl(2)
  EPOLLIN: 0x1,
  EPOLLONESHOT: 0x40000000,
  EPOLL_CTL_ADD: 1,
  EPOLL_CTL_DEL: 2,
  EPOLL_CTL_MOD: 3,
  EPOLL_CLOEXEC: 0o2000000,
  // <sys/eventfd.h>, eventfd(2)
  EFD_NONBLOCK: 0o4000,
  EFD_CLOEXEC: 0o2000000,
  // <fcntl.h>, fcntl(2)
  F_SETFD: 2,
  FD_CLOEXEC: 1,
  F_GETFL: 3,
  F_SETFL: 4,
  O_NONBLOCK: 0o4000,
  // <spawn.h>, posix_spawn(3); <sys/wait.h>, waitpid(2); <sys/syscall.h>, pidfd_open(2)
  POSIX_SPAWN_SETSIGDEF: 0x04,
  POSIX_SPAWN_SETSIGMASK: 0x08,
  POSIX_SPAWN_SETSID: 0x80,
  WNOHANG: 1,
  SYS_pidfd_open: 434,
  F_DUPFD_CLOEXEC: 1030,
} as const

interface Layout {
  /** The manual page and the header that describe it. */
  readonly source: string
  /** Octets of the whole struct. */
  readonly size: number
  /** Offsets in octets of the members that we use. */
  readonly at: Readonly<Record<string, number>>
}

/** By the name of the struct in C. `tcp_info` grows with the kernel: we ask only for its beginning. */
export const layouts = {
  sockaddr_in: {
    source: 'ip(7), <netinet/in.h>',
    size: 16,
    at: { sin_family: 0, sin_port: 2, sin_addr: 4 },
  },
  sockaddr_in6: {
    source: 'ipv6(7), <netinet/in.h>',
    size: 28,
    at: { sin6_family: 0, sin6_port: 2, sin6_flowinfo: 4, sin6_addr: 8, sin6_scope_id: 24 },
  },
  sockaddr_un: {
    source: 'unix(7), <sys/un.h>',
    size: 110,
    at: { sun_family: 0, sun_path: 2 },
  },
  timeval: { source: 'socket(7), <sys/time.h>', size: 16, at: { tv_sec: 0, tv_usec: 8 } },
  pollfd: { source: 'poll(2), <poll.h>', size: 8, at: { fd: 0, events: 4, revents: 6 } },
  iovec: { source: 'readv(2), <sys/uio.h>', size: 16, at: { iov_base: 0, iov_len: 8 } },
  mmsghdr: {
    source: 'recvmmsg(2), <sys/socket.h>; msg_hdr is a struct msghdr',
    size: 64,
    at: {
      'msg_hdr.msg_name': 0,
      'msg_hdr.msg_namelen': 8,
      'msg_hdr.msg_iov': 16,
      'msg_hdr.msg_iovlen': 24,
      'msg_hdr.msg_control': 32,
      'msg_hdr.msg_controllen': 40,
      'msg_hdr.msg_flags': 48,
      msg_len: 56,
    },
  },
  tcp_info: { source: 'tcp(7), <linux/tcp.h>', size: 32, at: { tcpi_unacked: 24 } },
} as const satisfies Record<string, Layout>

/** struct epoll_event is packed on x64 and on no other architecture. */
export const epollEvent = (arch: string): Layout => ({
  source: 'epoll_ctl(2), <sys/epoll.h>',
  size: arch === 'x64' ? 12 : 16,
  at: { events: 0, data: arch === 'x64' ? 4 : 8 },
})
