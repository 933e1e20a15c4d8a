/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What both programs use: views over headers, sums, and values of newer kernels' headers. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* TC_ACT_UNSPEC for cls_bpf and TCX_NEXT for TCX: the next program, or the kernel, gets the packet. */
#define NEXT -1
#define DROP 2 /* TC_ACT_SHOT, TCX_DROP */

#define PACKET_HOST 0 /* linux/if_packet.h: a frame for this host */

#define AF_INET 2
#define AF_INET6 10

#define FRAGMENT 0x3fff /* more fragments, or an offset: RFC 791 */
#define DONT_FRAGMENT 0x4000

#define ECN_MASK 3
#define ECN_ECT1 1
#define ECN_ECT0 2
#define ECN_CE 3

/* linux/bpf.h from Linux 6.3 on: the IP version behind the header that bpf_skb_adjust_room takes off. */
#define DECAP_L3_IPV4 (1ULL << 7)
#define DECAP_L3_IPV6 (1ULL << 8)

#define L2 ETH_HLEN
#define IP4 ((int)sizeof(struct iphdr))
#define IP6 ((int)sizeof(struct ipv6hdr))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define barrier() asm volatile("" ::: "memory")

/* data and data_end of a packet. They are read anew after each helper that may move the packet. */
#define DATA(skb) ((void *)(long)(skb)->data)
#define END(skb) ((void *)(long)(skb)->data_end)

/* fold returns the 16-bit sum of a partial sum of 16-bit or 32-bit words, not inverted: RFC 1071. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum >> 32) + (sum & 0xffffffff);
	sum = (sum >> 16) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	return sum;
}

/* sum4 is the sum of an IPv4 header without options: 0xffff if its checksum is right. */
static __always_inline __u16 sum4(const struct iphdr *ip)
{
	const __u32 *w = (const void *)ip;

	return fold((__u64)w[0] + w[1] + w[2] + w[3] + w[4]);
}

/* plain4 reports whether the header is 20 bytes of a whole packet's: no options, no fragment, right checksum. */
static __always_inline int plain4(const struct iphdr *ip)
{
	return *(const __u8 *)ip == 0x45 && !(ip->frag_off & bpf_htons(FRAGMENT)) && sum4(ip) == 0xffff;
}

static __always_inline __u8 version(const void *ip) { return *(const __u8 *)ip >> 4; }

/* class6 is the traffic class. */
static __always_inline __u8 class6(const struct ipv6hdr *ip)
{
	const __u8 *b = (const void *)ip;

	return b[0] << 4 | b[1] >> 4;
}

/* now is the kernel's jiffies: it costs one load, where each clock costs a call. */
static __always_inline __u32 now(void) { return bpf_jiffies64(); }

/* clock returns now to user space, which runs it by BPF_PROG_TEST_RUN. It is attached to no device. */
SEC("tc")
int clock(struct __sk_buff *skb) { return now(); }

/* A TCX link ends with its process. A tc filter does not: its program takes no packet when its lease has ended. */
struct lease {
	__u32 limited; /* the program works only until then */
	__u32 until;   /* see now() */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lease);
} leases SEC(".maps");

/* leased reports whether the process that has loaded the program is alive. */
static __always_inline int leased(void)
{
	__u32 zero = 0;
	const struct lease *l = bpf_map_lookup_elem(&leases, &zero);

	return l && (!l->limited || (__s32)(l->until - now()) >= 0);
}
