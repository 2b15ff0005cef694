/* A server that answers like an engine, so cheap that it is not what is measured: 3 us a request, 2 us a streamed chunk.

   engine PORT TTFT_MS ITL_MS TOKENS

   Each request has a clock of its own. Every answer has the process in its id: chatcmpl-PID. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 1 << 14, MOST = 1 << 16, RING = 1 << 18 };
typedef struct { char data[ROOM]; int size, left, is_stream; unsigned serial; } Connection;
typedef struct { double due; int fd; unsigned serial; } Timer;
typedef struct { Timer at[RING]; unsigned first, last; } Ring; /* all of one delay: the first is due first */

static Connection *of[MOST];
static Ring firsts, nexts;
static double ttft, itl;
static int tokens;
static char opening[2048], token[1024], ending[2048], whole[1024];
static int opening_size, token_size, ending_size, whole_size;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static void send_all(int fd, const char *data, int size) { if (write(fd, data, size) != size) {} }
static int chunk(char *to, const char *form, ...) {
  char text[768];
  va_list words;
  va_start(words, form);
  int size = vsnprintf(text, sizeof text, form, words);
  va_end(words);
  return sprintf(to, "%x\r\n%s\r\n", size, text);
}
static void later(Ring *ring, double due, int fd) {
  ring->at[ring->last++ % RING] = (Timer){due, fd, of[fd]->serial};
}
static void drop(int fd) { of[fd]->serial++, of[fd]->size = 0, close(fd); }

static void answer(int fd, double when) {
  Connection *c = of[fd];
  int first = c->left == tokens;
  if (!c->is_stream) { send_all(fd, whole, whole_size); return; }
  if (first) send_all(fd, opening, opening_size);
  else if (c->left > 1) send_all(fd, token, token_size);
  else send_all(fd, ending, ending_size);
  if (--c->left > 0) later(&nexts, when + itl, fd);
}
static void asked(int fd) {
  Connection *c = of[fd];
  for (;;) {
    c->data[c->size] = 0;
    char *over = strstr(c->data, "\r\n\r\n");
    if (!over) return;
    char *told = strcasestr(c->data, "\r\ncontent-length:");
    int length = told && told < over ? atoi(told + 17) : 0, size = over + 4 - c->data + length;
    if (size > ROOM - 1) { drop(fd); return; }
    if (c->size < size) return;
    if (strncmp(c->data, "POST /v1/chat/completions ", 26)) { /* a health check, or what no engine of this kind has */
      int models = !strncmp(c->data, "GET /v1/models", 14);
      const char *body = models ? "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\"}]}" : "{}";
      char text[512];
      const char *form = "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s";
      send_all(fd, text, sprintf(text, form, c->data[0] == 'G' ? "200 OK" : "404 Not Found", strlen(body), body));
    } else {
      c->is_stream = strstr(over, "\"stream\":true") || strstr(over, "\"stream\": true");
      c->left = tokens;
      later(&firsts, now() + ttft, fd);
    }
    memmove(c->data, c->data + size, c->size -= size);
  }
}
static void run_due(Ring *ring, double when) {
  unsigned last = ring->last; /* those that come meanwhile wait for the next round: each chunk goes alone */
  while (ring->first != last && ring->at[ring->first % RING].due <= when) {
    Timer *timer = &ring->at[ring->first++ % RING];
    if (of[timer->fd] && of[timer->fd]->serial == timer->serial) answer(timer->fd, timer->due);
  }
}
int main(int count, char **words) {
  if (count != 5) return 2;
  signal(SIGPIPE, SIG_IGN);
  ttft = atof(words[2]) / 1e3, itl = atof(words[3]) / 1e3, tokens = atoi(words[4]);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files), files.rlim_cur = files.rlim_max, setrlimit(RLIMIT_NOFILE, &files);
  char head[512];
  int pid = getpid();
  sprintf(head, "{\"id\":\"chatcmpl-%d\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",", pid);
  const char *delta = "data: %s\"choices\":[{\"index\":0,\"delta\":{\"content\":\" lorem\"},\"finish_reason\":null}]}\n\n";
  token_size = chunk(token, delta, head);
  opening_size = sprintf(opening, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%s", token);
  ending_size = sprintf(ending, "%s", token);
  ending_size += chunk(ending + ending_size, "data: %s\"choices\":[],\"usage\":{\"prompt_tokens\":120,\"completion_tokens\":%d}}\n\n", head, tokens);
  ending_size += chunk(ending + ending_size, "data: [DONE]\n\n");
  ending_size += sprintf(ending + ending_size, "0\r\n\r\n");
  char body[512];
  int size = sprintf(body, "{\"id\":\"chatcmpl-%d\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,"
                     "\"message\":{\"role\":\"assistant\",\"content\":\"lorem ipsum\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":120,"
                     "\"completion_tokens\":2,\"total_tokens\":122}}", pid);
  whole_size = sprintf(whole, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", size, body);

  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096)) { perror("engine"); return 1; }
  int poll_fd = epoll_create1(0), timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, found[256];
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &event);
  event.data.fd = timer_fd, epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &event);
  for (;;) {
    double when = now(), due = 0;
    run_due(&firsts, when), run_due(&nexts, when);
    if (firsts.first != firsts.last) due = firsts.at[firsts.first % RING].due;
    if (nexts.first != nexts.last && (!due || nexts.at[nexts.first % RING].due < due)) due = nexts.at[nexts.first % RING].due;
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)due, .tv_nsec = (long)((due - (time_t)due) * 1e9)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
    int events = epoll_wait(poll_fd, found, 256, due && due <= when ? 0 : -1);
    for (int i = 0; i < events; i++) {
      int fd = found[i].data.fd;
      if (fd == timer_fd) { unsigned long expired; if (read(fd, &expired, sizeof expired)) {} continue; }
      if (fd == listener) {
        for (int new; (new = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0;) {
          if (new >= MOST || (!of[new] && !(of[new] = calloc(1, sizeof(Connection))))) { close(new); continue; }
          setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
          event.data.fd = new, epoll_ctl(poll_fd, EPOLL_CTL_ADD, new, &event);
        }
        continue;
      }
      ssize_t size = read(fd, of[fd]->data + of[fd]->size, ROOM - 1 - of[fd]->size);
      if (size <= 0) drop(fd);
      else of[fd]->size += size, asked(fd);
    }
  }
}
