/* Load on one HTTP server, so cheap that it is not what is measured: 3 us a request, 1 us a streamed chunk.

   load PORT CONNECTIONS RATE SECONDS STREAM SPREAD

   RATE 0 is a closed loop: each connection asks again when its answer is whole; they begin one after the other, over SPREAD
   seconds, lest all streams end and begin at the same moments. Else requests come at random times
   (a Poisson process of so many a second) and wait for a free connection if they must: their time begins when they were
   due. One line comes back:
   SECONDS REQUESTS FAILED CHUNKS, then p50 and p99 in ms of the first byte, and of the time from read to read. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { HEAD, LENGTH, SIZE, DATA, TAIL };
typedef struct {
  int fd, state, busy, got;      /* got: bytes of the answer's head, or -1 once its first byte was timed */
  long left;                     /* bytes of the body, or of a chunk */
  int zero, failed;
  double due, last;
  char head[4096];
} Connection;
typedef struct { double *at; long count, room; } Times;

static int port, connections, stream, poll_fd, timer_fd;
static double rate, deadline;
static char request[4096];
static size_t request_length;
static Connection *all;
static int *idle, idles;
static double *queue;
static long queue_first, queue_last, queue_room = 1 << 20;
static long requests, failed, chunks, in_flight;
static Times first, gaps;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static void die(const char *what) { perror(what); exit(1); }
static void add(Times *t, double value) {
  if (t->count == t->room && !(t->at = realloc(t->at, (t->room = t->room * 2 + 4096) * sizeof *t->at))) die("memory");
  t->at[t->count++] = value;
}
static int by_size(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }
static double quantile(Times *t, double share) { return t->count ? 1e3 * t->at[(long)(share * (t->count - 1))] : -1; }

static void open_connection(Connection *c) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1;
  if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0) die("socket");
  if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) die("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
  if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
}
static void ask(Connection *c, double due) {
  c->busy = 1, c->state = HEAD, c->got = 0, c->failed = 0, c->due = due, in_flight++;
  if (write(c->fd, request, request_length) != (ssize_t)request_length) {} /* a closed one is seen when it is read */
}
static void answered(Connection *c, double when) {
  requests++, failed += c->failed, c->busy = 0, in_flight--;
  if (!rate) { if (when < deadline) ask(c, when); return; }
  if (queue_first < queue_last) ask(c, queue[queue_first++ % queue_room]);
  else idle[idles++] = c - all;
}
static void head_read(Connection *c) {
  char *length = strcasestr(c->head, "\r\ncontent-length:");
  c->failed = strncmp(c->head, "HTTP/1.1 200", 12) != 0;
  if (length) c->state = LENGTH, c->left = atol(length + 17);
  else c->state = SIZE, c->left = 0;
}
/* Take bytes of an answer; 1 when it is whole. */
static int take(Connection *c, char *data, long size) {
  char *end = data + size;
  while (data < end) switch (c->state) {
    case HEAD: {
      int room = sizeof c->head - 1 - c->got, part = end - data < room ? end - data : room, before = c->got;
      memcpy(c->head + c->got, data, part), c->head[c->got += part] = 0;
      char *over = strstr(c->head, "\r\n\r\n");
      if (!over) { if (!room) exit(3); data += part; break; }
      data += over + 4 - c->head - before;
      head_read(c);
      if (c->state == LENGTH && !c->left) return 1;
      break;
    }
    case LENGTH: case DATA: {
      long part = end - data < c->left ? end - data : c->left;
      data += part, c->left -= part;
      if (!c->left && c->state == LENGTH) return 1;
      if (!c->left) c->state = SIZE;
      break;
    }
    case SIZE: {
      char letter = *data++;
      if (letter == '\n') {
        if (!c->left) c->state = TAIL, c->zero = 0;
        else c->left += 2, c->state = DATA, chunks++;
      } else if (letter != '\r') c->left = c->left * 16 + (letter <= '9' ? letter - '0' : (letter | 32) - 'a' + 10);
      break;
    }
    case TAIL: if (*data++ == '\n') return 1;
  }
  return 0;
}
static void ready(Connection *c) {
  static char data[1 << 16];
  ssize_t size = read(c->fd, data, sizeof data);
  double when = now();
  if (size <= 0) {
    close(c->fd);
    open_connection(c);
    if (c->busy) c->failed = 1, answered(c, when);
    return;
  }
  if (!c->busy) return;
  if (c->state == HEAD && !c->got) add(&first, when - c->due);
  else add(&gaps, when - c->last);
  c->last = when;
  if (take(c, data, size)) answered(c, when);
}
static void arm(double when) {
  struct itimerspec at = {.it_value = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (time_t)when) * 1e9)}};
  timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}
int main(int count, char **words) {
  if (count != 7) return 2;
  port = atoi(words[1]), connections = atoi(words[2]), rate = atof(words[3]), stream = atoi(words[5]);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files), files.rlim_cur = files.rlim_max, setrlimit(RLIMIT_NOFILE, &files);
  char text[512] = "", body[1024];
  while (strlen(text) < 480) strcat(text, "hello world ");
  int length = snprintf(body, sizeof body, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],"
                        "\"max_tokens\":16,\"stream\":%s}", text, stream ? "true" : "false");
  request_length = snprintf(request, sizeof request, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                            "Authorization: Bearer none\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
                            port, length, body);
  poll_fd = epoll_create1(0), timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  all = calloc(connections, sizeof *all), idle = calloc(connections, sizeof *idle), queue = calloc(queue_room, sizeof *queue);
  if (!all || !idle || !queue) die("memory");
  for (int i = 0; i < connections; i++) open_connection(&all[i]);
  usleep(connections * 200); /* until they are accepted: that is not what is measured */
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, found[256];
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &event);
  double began = now(), next = began, spread = atof(words[6]);
  int asking = 0;
  deadline = began + atof(words[4]);
  for (int i = 0; i < connections && rate; i++) idle[idles++] = i;
  arm(began);
  while (now() < deadline) {
    int events = epoll_wait(poll_fd, found, 256, 1000);
    for (int i = 0; i < events; i++) {
      if (found[i].data.ptr) { ready(found[i].data.ptr); continue; }
      unsigned long expired;
      if (read(timer_fd, &expired, sizeof expired) < 0) continue;
      if (!rate) {
        for (double when = now(); asking < connections && began + spread * asking / connections <= when;) ask(&all[asking++], when);
        arm(asking < connections ? began + spread * asking / connections : deadline);
        continue;
      }
      for (double when = now(); next <= when && next < deadline; next -= log(1 - drand48()) / rate) {
        if (idles) ask(&all[idle[--idles]], next);
        else if (queue_last - queue_first < queue_room) queue[queue_last++ % queue_room] = next;
        else exit(3);
      }
      arm(next < deadline ? next : deadline);
    }
  }
  double seconds = now() - began;
  qsort(first.at, first.count, sizeof(double), by_size), qsort(gaps.at, gaps.count, sizeof(double), by_size);
  printf("%.4f %ld %ld %ld %.4f %.4f %.4f %.4f\n", seconds, requests, failed, chunks, quantile(&first, .5),
         quantile(&first, .99), quantile(&gaps, .5), quantile(&gaps, .99));
}
