/*
 * The chapter's server models in plain C, each as short as it can honestly be: what the benchmark compares ours with.
 *
 *   peer iterative|concurrent|prefork|event-loop CHILDREN     prints the port that it listens on, on 127.0.0.1
 *
 * iterative answers UDP, the others TCP. CHILDREN is the size of the prefork pool.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define BUFFER_OCTETS 65536
#define MAX_EVENTS 256

static char buffer[BUFFER_OCTETS];

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int bound(int type) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  int fd = socket(AF_INET, type, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) < 0) fail("bind");
  if (type == SOCK_STREAM && listen(fd, SOMAXCONN) < 0) fail("listen");
  getsockname(fd, (struct sockaddr *)&address, &length);
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  return fd;
}

static int send_all(int fd, ssize_t length) {
  for (ssize_t sent = 0; sent < length;) {
    ssize_t n = send(fd, buffer + sent, length - sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EINTR) return -1;
    if (n > 0) sent += n;
  }
  return 0;
}

static void no_delay(int fd) {
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void serve(int fd) {
  ssize_t n;
  no_delay(fd);
  while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0)
    if (send_all(fd, n) < 0) break;
  close(fd);
}

static void iterative(void) {
  int fd = bound(SOCK_DGRAM);
  for (;;) {
    struct sockaddr_in peer;
    socklen_t length = sizeof peer;
    ssize_t n = recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&peer, &length);
    if (n >= 0) sendto(fd, buffer, n, 0, (struct sockaddr *)&peer, length);
  }
}

static void reap(int number) {
  int saved = errno;
  (void)number;
  while (waitpid(-1, NULL, WNOHANG) > 0) {}
  errno = saved;
}

static void concurrent(void) {
  struct sigaction action = {.sa_handler = reap, .sa_flags = SA_RESTART};
  int listener = bound(SOCK_STREAM);
  sigaction(SIGCHLD, &action, NULL);
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) continue;
    if (fork() == 0) {
      close(listener);
      serve(fd);
      _exit(0);
    }
    close(fd);
  }
}

static void prefork(int children) {
  int listener = bound(SOCK_STREAM);
  for (int i = 0; i < children; i++)
    if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0) serve(fd);
      }
    }
  for (;;) pause();
}

static void event_loop(void) {
  struct epoll_event events[MAX_EVENTS], wanted = {.events = EPOLLIN};
  int listener = bound(SOCK_STREAM), epoll = epoll_create1(0);
  wanted.data.fd = listener;
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &wanted);
  for (;;) {
    int ready = epoll_wait(epoll, events, MAX_EVENTS, -1);
    for (int i = 0; i < ready; i++) {
      int fd = events[i].data.fd;
      if (fd == listener) {
        wanted.data.fd = accept(listener, NULL, NULL);
        if (wanted.data.fd < 0) continue;
        no_delay(wanted.data.fd);
        epoll_ctl(epoll, EPOLL_CTL_ADD, wanted.data.fd, &wanted);
        continue;
      }
      ssize_t n = recv(fd, buffer, sizeof buffer, 0);
      if (n <= 0 || send_all(fd, n) < 0) close(fd);
    }
  }
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  /* Gone with whoever started it. */
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (!strcmp(argv[1], "iterative")) iterative();
  else if (!strcmp(argv[1], "concurrent")) concurrent();
  else if (!strcmp(argv[1], "prefork")) prefork(atoi(argv[2]));
  else if (!strcmp(argv[1], "event-loop")) event_loop();
  return 2;
}
