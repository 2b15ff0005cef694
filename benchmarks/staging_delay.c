/* Delays what comes in at eth0 of some network namespaces: for kernels without netem.
 *
 *     staging_delay MICROSECONDS NAMESPACE...
 *
 * A rule of the table "raw" hands each packet to a queue (NFQUEUE). Packets stay in the kernel, offloaded frames of 64 kB whole;
 * only their numbers come here, and are accepted when their time has come. Arrivals are looked at every TICK, so a delay is
 * up to one longer. Needs root. Prints a line when all is set up, and runs until it is killed; nothing of it is left then, but
 * the rules, which end with their namespaces. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netfilter/xt_NFQUEUE.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 64, BATCHES = 4096, READ_AT_ONCE = 64, MESSAGE = 512, TICK = 200000 /* ns */ };

struct batch { uint32_t last; int64_t due; };  /* packets up to a number, and when they may go on, ns */
struct queue { int socket; struct batch batches[BATCHES]; unsigned first, end; };

static struct queue queues[MOST];

static void die(const char *what) { perror(what); exit(1); }

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* -- the rule: incoming packets of eth0 to queue 0; then accept, for both hooks of the table, and the end mark */

struct rule { struct ipt_entry entry; struct xt_entry_target target; union { int verdict; struct xt_NFQ_info queue; char pad[8]; } to; };
struct mark { struct ipt_entry entry; struct xt_error_target target __attribute__((aligned(8))); };
struct table { struct ipt_replace head; struct rule queue, accept_in, accept_out; struct mark end; };

static struct rule rule(const char *target)
{
    struct rule made = {.entry = {.target_offset = sizeof made.entry, .next_offset = sizeof made}, .to.verdict = -NF_ACCEPT - 1};
    made.target.u.user.target_size = sizeof made - sizeof made.entry;
    strcpy(made.target.u.user.name, target);
    return made;
}

static void add_rule(void)
{
    struct xt_counters old[64];
    struct ipt_getinfo info = {.name = "raw"};
    socklen_t length = sizeof info;
    int raw = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
    if (raw < 0 || getsockopt(raw, IPPROTO_IP, IPT_SO_GET_INFO, &info, &length) || info.num_entries > 64)
        die("the table raw of iptables");
    struct table table = {.queue = rule("NFQUEUE"), .accept_in = rule(""), .accept_out = rule("")};
    struct ipt_replace *head = &table.head;
    const unsigned base = offsetof(struct table, queue), last = sizeof table - base;
    strcpy(head->name, "raw");
    head->valid_hooks = 1 << NF_INET_PRE_ROUTING | 1 << NF_INET_LOCAL_OUT;
    head->num_entries = 4;
    head->size = last;
    head->underflow[NF_INET_PRE_ROUTING] = offsetof(struct table, accept_in) - base;
    head->hook_entry[NF_INET_LOCAL_OUT] = head->underflow[NF_INET_LOCAL_OUT] = offsetof(struct table, accept_out) - base;
    head->num_counters = info.num_entries;
    head->counters = old;
    strcpy(table.queue.entry.ip.iniface, "eth0");
    memset(table.queue.entry.ip.iniface_mask, 0xff, sizeof "eth0");
    table.queue.to.queue.queuenum = 0;
    table.end.entry.target_offset = sizeof table.end.entry;
    table.end.entry.next_offset = sizeof table.end;
    table.end.target.target.u.user.target_size = sizeof table.end.target;
    strcpy(table.end.target.target.u.user.name, XT_ERROR_TARGET);
    strcpy(table.end.target.errorname, XT_ERROR_TARGET);
    if (setsockopt(raw, IPPROTO_IP, IPT_SO_SET_REPLACE, &table, sizeof table))
        die("the target NFQUEUE of iptables");
    close(raw);
}

/* -- the queue */

struct attribute { int type; const void *value; size_t size; };

static void tell(int socket, int type, int count, const struct attribute *attributes)
{
    struct { struct nlmsghdr head; struct nfgenmsg general; char rest[64]; } message = {
        .head = {.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | type, .nlmsg_flags = NLM_F_REQUEST},
    };
    char *at = message.rest;
    for (const struct attribute *each = attributes; each < attributes + count; each++) {
        struct nlattr head = {.nla_len = NLA_HDRLEN + each->size, .nla_type = each->type};
        memcpy(at, &head, sizeof head);
        memcpy(at + NLA_HDRLEN, each->value, each->size);
        at += NLA_ALIGN(head.nla_len);
    }
    message.head.nlmsg_len = at - (char *)&message;
    if (send(socket, &message, message.head.nlmsg_len, 0) < 0)
        die("netlink");
}

static int open_queue(void)
{
    const int on = 1, room = 16 << 20;
    const struct nfqnl_msg_config_cmd bind = {.command = NFQNL_CFG_CMD_BIND, .pf = htons(AF_INET)};
    const struct nfqnl_msg_config_params numbers = {.copy_mode = NFQNL_COPY_META};
    const uint32_t most = htonl(1 << 16), whole = htonl(NFQA_CFG_F_GSO);
    int opened = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_NETFILTER);
    if (opened < 0)
        die("netlink");
    setsockopt(opened, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof on);
    setsockopt(opened, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    tell(opened, NFQNL_MSG_CONFIG, 1, &(struct attribute){NFQA_CFG_CMD, &bind, sizeof bind});
    tell(opened, NFQNL_MSG_CONFIG, 4, (struct attribute[]){
        {NFQA_CFG_PARAMS, &numbers, sizeof numbers}, {NFQA_CFG_QUEUE_MAXLEN, &most, sizeof most},
        {NFQA_CFG_MASK, &whole, sizeof whole}, {NFQA_CFG_FLAGS, &whole, sizeof whole}});
    return opened;
}

static uint32_t number_of(const char *message)
{
    const struct nlmsghdr *head = (const void *)message;
    const struct nlattr *at = (const void *)(message + NLMSG_LENGTH(sizeof(struct nfgenmsg)));
    if (head->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
        return 0;
    while (at->nla_type != NFQA_PACKET_HDR)  /* it is always there */
        at = (const void *)((const char *)at + NLA_ALIGN(at->nla_len));
    return ntohl(((const struct nfqnl_msg_packet_hdr *)(at + 1))->packet_id);
}

/* Note which packets have come. */
static void take(struct queue *queue, int64_t due)
{
    static char texts[READ_AT_ONCE][MESSAGE] __attribute__((aligned(8)));
    static struct iovec parts[READ_AT_ONCE];
    static struct mmsghdr messages[READ_AT_ONCE];
    uint32_t last = 0;
    int count;
    for (int n = 0; n < READ_AT_ONCE; n++) {
        parts[n] = (struct iovec){texts[n], MESSAGE};
        messages[n].msg_hdr = (struct msghdr){.msg_iov = &parts[n], .msg_iovlen = 1};
    }
    while ((count = recvmmsg(queue->socket, messages, READ_AT_ONCE, 0, NULL)) > 0) {
        uint32_t number = number_of(texts[count - 1]);
        last = number ? number : last;
        if (count < READ_AT_ONCE)
            break;
    }
    if (last && queue->end - queue->first < BATCHES)
        queue->batches[queue->end++ % BATCHES] = (struct batch){last, due};
}

/* Let the packets go on whose time has come. */
static void release(struct queue *queue, int64_t time)
{
    struct nfqnl_msg_verdict_hdr verdict = {.verdict = htonl(NF_ACCEPT)};
    for (; queue->first != queue->end && queue->batches[queue->first % BATCHES].due <= time; queue->first++)
        verdict.id = htonl(queue->batches[queue->first % BATCHES].last);
    if (verdict.id)
        tell(queue->socket, NFQNL_MSG_VERDICT_BATCH, 1,
             &(struct attribute){NFQA_VERDICT_HDR, &verdict, sizeof verdict});
}

int main(int count, char **words)
{
    struct pollfd sockets[MOST];
    const int64_t delay = count > 1 ? atoll(words[1]) * 1000 : 0;
    count -= 2;
    if (count < 1 || count > MOST || delay <= 0)
        return fprintf(stderr, "usage: staging_delay MICROSECONDS NAMESPACE...\n"), 2;
    prctl(PR_SET_TIMERSLACK, 1000);
    for (int n = 0; n < count; n++) {
        char path[256];
        snprintf(path, sizeof path, "/run/netns/%s", words[n + 2]);
        int space = open(path, O_RDONLY | O_CLOEXEC);
        if (space < 0 || setns(space, CLONE_NEWNET))
            die(path);
        close(space);
        queues[n].socket = open_queue();
        add_rule();
        sockets[n] = (struct pollfd){queues[n].socket, POLLIN, 0};
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int waiting = 0;
        int64_t time = now();
        for (int n = 0; n < count; n++) {
            take(&queues[n], time + delay);
            release(&queues[n], time);
            waiting |= queues[n].first != queues[n].end;
        }
        if (waiting)
            nanosleep(&(struct timespec){.tv_nsec = TICK}, NULL);
        else
            poll(sockets, count, -1);
    }
}
