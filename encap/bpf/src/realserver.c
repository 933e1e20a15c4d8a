/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The realserver's program, for ingress of an Ethernet device. It takes packets out of tunnels and hands them to the
 * agent's TUN device, as if the agent had written them there. It takes no packet that the agent would refuse
 * (encap/endpoint, Policy; encap, Decapsulator). It leaves every other packet to the agent's sockets, unchanged: the
 * agent accepts it, or refuses and counts it.
 */
#include "common.h"

char _license[] SEC("license") = "Dual MIT/GPL";

enum { UDP_NONE, UDP_GUE, UDP_FOU };

#define FIRST_VIPS 4
#define TCP ((int)sizeof(struct tcphdr))

struct rules {
	__u32 device;   /* interface index of the agent's TUN device; 0: the program takes no packet */
	__be32 key;     /* of GRE */
	__be16 port;    /* of GUE and FOU */
	__u16 mtu;      /* of the device: the kernel drops larger packets there, but for GSO packets */
	__u8 ipip, gre; /* allowed */
	__u8 has_key;   /* GRE must have the key; otherwise it must have none */
	__u8 udp;       /* UDP_NONE, UDP_GUE or UDP_FOU */
	/*
	 * A bit for each value of an address's last byte: it is clear if no address in locals4 or locals6 ends so. For
	 * most clients it saves the look-up.
	 */
	__u8 local[32];
	/* The first VIPs, which cost no look-up, and the number of all, at most 255. */
	__u8 vips4, vips6;
	__u16 hold; /* see hold(), in jiffies */
	__u32 from; /* time from which the program takes packets, 0: at once; before it the sockets had all */
	__be32 vip4[FIRST_VIPS];
	struct in6_addr vip6[FIRST_VIPS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rules);
} rules SEC(".maps");

/* Addresses of this host, by family. */
enum { LOCAL = 1, VIP = 2 };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __be32);
	__type(value, __u32);
} locals4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct in6_addr);
	__type(value, __u32);
} locals6 SEC(".maps");

/*
 * Pairs of a director's address and an address of this host, and what was taken from the one to the other: bytes with
 * outer headers, and without.
 */
struct count {
	__u64 packets, bytes, inner;
	__u32 until; /* see hold() */
	__u32 pad;
};

struct ends4 {
	__be32 director, local;
};

struct ends6 {
	struct in6_addr director, local;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct ends4);
	__type(value, struct count);
} pairs4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct ends6);
	__type(value, struct count);
} pairs6 SEC(".maps");

/* When hold() ends, for tunnels over UDP by the last bits of the source port, which differs between connections. */
#define HOLD_PORTS 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HOLD_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

/* outer is what the outer headers say. */
struct outer {
	struct count *count;
	__u32 *until; /* see hold() */
	__u32 len;     /* of the whole packet, in bytes */
	__u8 class;
	__u8 proto;
	__u8 six;
};

/* may_be_local reports whether an address with this last byte can be one of this host. */
static __always_inline int may_be_local(const struct rules *r, __u8 last)
{
	return r->local[last >> 3] & 1 << (last & 7);
}

static __always_inline int is_vip4(const struct rules *r, const __be32 *a)
{
#pragma unroll
	for (int i = 0; i < FIRST_VIPS; i++)
		if (i < r->vips4 && r->vip4[i] == *a)
			return 1;
	if (r->vips4 <= FIRST_VIPS)
		return 0;
	__u32 *flags = bpf_map_lookup_elem(&locals4, a);

	return flags && *flags & VIP;
}

static __always_inline int equal6(const struct in6_addr *a, const struct in6_addr *b)
{
	const __u32 *v = a->in6_u.u6_addr32, *w = b->in6_u.u6_addr32;

	return v[3] == w[3] && v[2] == w[2] && v[1] == w[1] && v[0] == w[0];
}

static __always_inline int is_vip6(const struct rules *r, const struct in6_addr *a)
{
#pragma unroll
	for (int i = 0; i < FIRST_VIPS; i++)
		if (i < r->vips6 && equal6(&r->vip6[i], a))
			return 1;
	if (r->vips6 <= FIRST_VIPS)
		return 0;
	__u32 *flags = bpf_map_lookup_elem(&locals6, a);

	return flags && *flags & VIP;
}

/* client4 is endpoint's Policy.isClient. */
static __always_inline int client4(const struct rules *r, const __be32 *a)
{
	__u8 first = *(const __u8 *)a;

	return first != 0 && first < 224 && first != 127 &&
	       (!may_be_local(r, ((const __u8 *)a)[3]) || !bpf_map_lookup_elem(&locals4, a));
}

static __always_inline int mapped(const struct in6_addr *a)
{
	const __u32 *w = a->in6_u.u6_addr32;

	return !w[0] && !w[1] && w[2] == bpf_htonl(0xffff);
}

static __always_inline int client6(const struct rules *r, const struct in6_addr *a)
{
	const __u32 *w = a->in6_u.u6_addr32;
	__u32 first = bpf_ntohl(w[0]) >> 16;

	return first >> 8 != 0xff && (first & 0xffc0) != 0xfe80 && (w[0] || w[1] || w[2]) &&
	       (!may_be_local(r, a->in6_u.u6_addr8[15]) || !bpf_map_lookup_elem(&locals6, a));
}

/* allowed reports whether the inner transport protocol may enter. rest is the number of bytes behind the IP header. */
static __always_inline int allowed(struct __sk_buff *skb, const struct rules *r, __u8 proto, __u8 icmp, const void *at,
				   const void *end, __u32 rest)
{
	if (proto == IPPROTO_TCP)
		return 1;
	if (skb->gso_size)
		return 0;
	if (proto == IPPROTO_UDP) {
		const struct udphdr *udp = at;

		return (const void *)(udp + 1) <= end && rest >= sizeof(*udp) && (!r->udp || udp->dest != r->port);
	}
	return proto == icmp || proto == IPPROTO_SCTP;
}

/* ecn returns the ECN bits of the inner packet behind the tunnel, or -1 if they can't carry the outer mark: RFC 6040. */
static __always_inline int ecn(__u8 o, __u8 i)
{
	o &= ECN_MASK;
	i &= ECN_MASK;
	if (o == ECN_CE)
		return i ? ECN_CE : -1;
	return o == ECN_ECT1 && i == ECN_ECT0 ? ECN_ECT1 : i;
}

/*
 * hold leaves the packet to the sockets, and the next ones of its connection, too: those would overtake it. Only a
 * packet does so that others of its connection are unlike: several datagrams in one GSO packet, a large packet, or a
 * packet with a UDP checksum. Over UDP its connection is that of its source port, otherwise all of the director's on
 * this CPU.
 */
static __always_inline int hold(const struct rules *r, const struct outer *o)
{
	__u32 until = now() + r->hold;

	*o->until = until ? until : 1;
	return NEXT;
}

/* held reports whether packets are left to the sockets until then: a time within hold. Another one has passed. */
static __always_inline int held(const struct rules *r, __u32 *until)
{
	__u32 end = *(volatile __u32 *)until; /* before the time: another CPU may write a later one meanwhile */

	if (likely(!end))
		return 0;
	__u32 left = end - now();

	if (left && left <= r->hold)
		return 1;
	*until = 0;
	return 0;
}

/*
 * too_large reports whether a packet of len bytes is larger than the device's MTU, by which the kernel would drop it,
 * or a GSO packet's segments are.
 */
static __always_inline int too_large(const struct __sk_buff *skb, const struct rules *r, __u32 len, __u32 headers)
{
	return (skb->gso_size ? skb->gso_size + headers : len) > r->mtu;
}

/* strip takes n bytes of outer headers off. */
static __always_inline int strip(struct __sk_buff *skb, const struct rules *r, const struct outer *o, int n, int six)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	if (o->proto != IPPROTO_UDP) /* a checksum that the card has verified is the inner one */
		flags |= BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	if (six != o->six)
		flags |= six ? DECAP_L3_IPV6 : DECAP_L3_IPV4;
	return bpf_skb_adjust_room(skb, -n, BPF_ADJ_ROOM_MAC, flags);
}

/* enter counts the packet of len bytes and hands it to the agent's device. */
static __always_inline int enter(struct __sk_buff *skb, const struct rules *r, const struct outer *o, __u32 len)
{
	o->count->packets++;
	o->count->bytes += o->len;
	o->count->inner += len;
	bpf_set_hash_invalid(skb); /* it is of the outer headers */
	return bpf_redirect(r->device, BPF_F_INGRESS);
}

/* inner4 checks the packet at, behind n bytes of outer headers, and takes it. */
static __always_inline int inner4(struct __sk_buff *skb, const struct rules *r, const struct outer *o, void *at,
				  __u32 n)
{
	void *end = END(skb);
	struct iphdr *ip = at;

	if (at + IP4 > end || !plain4(ip))
		return NEXT;
	__u32 len = bpf_ntohs(ip->tot_len);

	if (len < IP4)
		return NEXT;
	if (len + n != o->len)
		return skb->gso_size ? hold(r, o) : NEXT;
	if (too_large(skb, r, len, IP4 + TCP))
		return hold(r, o);
	if (!allowed(skb, r, ip->protocol, IPPROTO_ICMP, at + IP4, end, len - IP4))
		return NEXT;
	__be32 src = ip->saddr, dst = ip->daddr;

	if (!is_vip4(r, &dst) || !client4(r, &src))
		return NEXT;
	int mark = ecn(o->class, ip->tos);

	if (mark < 0)
		return NEXT;
	__u8 was = ip->tos, is = (was & ~ECN_MASK) | mark;
	__u16 sum = (__u16)~ip->check;

	if (strip(skb, r, o, n, 0))
		return NEXT;
	if (unlikely(is != was)) {
		sum = ~fold((__u64)sum + (__u16)~bpf_htons(0x4500 | was) + bpf_htons(0x4500 | is));
		bpf_skb_store_bytes(skb, L2 + 1, &is, 1, 0);
		bpf_skb_store_bytes(skb, L2 + 10, &sum, 2, 0);
	}
	return enter(skb, r, o, len);
}

/* inner6 is inner4 for IPv6. */
static __always_inline int inner6(struct __sk_buff *skb, const struct rules *r, const struct outer *o, void *at,
				  __u32 n)
{
	void *end = END(skb);
	struct ipv6hdr *ip = at;

	if (at + IP6 > end || version(ip) != 6)
		return NEXT;
	__u32 len = bpf_ntohs(ip->payload_len) + IP6;

	if (len + n != o->len)
		return skb->gso_size ? hold(r, o) : NEXT;
	if (too_large(skb, r, len, IP6 + TCP))
		return hold(r, o);
	if (!allowed(skb, r, ip->nexthdr, IPPROTO_ICMPV6, at + IP6, end, len - IP6))
		return NEXT;
	struct in6_addr src = ip->saddr, dst = ip->daddr;

	if (mapped(&src) || mapped(&dst))
		return NEXT;
	if (!is_vip6(r, &dst) || !client6(r, &src))
		return NEXT;
	__u8 was = class6(ip);
	int mark = ecn(o->class, was);
	__u8 byte = ((__u8 *)ip)[1];

	if (mark < 0 || strip(skb, r, o, n, 1))
		return NEXT;
	if (unlikely(mark != (was & ECN_MASK))) {
		byte = (byte & ~(ECN_MASK << 4)) | mark << 4;
		bpf_skb_store_bytes(skb, L2 + 1, &byte, 1, BPF_F_RECOMPUTE_CSUM);
	}
	return enter(skb, r, o, len);
}

/*
 * SKIP moves a pointer into the packet, and the number of bytes before it, by a constant. Without CAP_PERFMON the
 * verifier allows no addition of a variable to such a pointer. The compiler must not make one of several constants.
 */
#define SKIP(at, n, bytes) ({ at += (bytes); n += (bytes); asm volatile("" : "+r"(at)); })

/*
 * tunnel takes the packet out of the tunnel behind an outer IP header of n bytes. The outer header is checked. It
 * mirrors Decapsulator.Decap. A packet with an outer checksum is left to the sockets, which verify it.
 */
static __always_inline int tunnel(struct __sk_buff *skb, struct rules *r, struct outer *o, __u32 n)
{
	__u8 *b = DATA(skb) + L2 + n;
	const void *end = END(skb);
	int six;

	if (!leased() || held(r, &r->from))
		return NEXT;
	o->until = &o->count->until;
	switch (o->proto) {
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
		if (!r->ipip)
			return NEXT;
		six = o->proto == IPPROTO_IPV6;
		break;
	case IPPROTO_GRE: {
		const __u16 key = 0x2000, ignored = 0x03f8; /* packet.GREKey, packet.GREIgnored */

		if (!r->gre || (const void *)(b + 8) > end)
			return NEXT;
		__u16 flags = b[0] << 8 | b[1], type = b[2] << 8 | b[3];

		if ((flags & ~ignored) != (r->has_key ? key : 0))
			return NEXT;
		if (r->has_key) {
			if (*(const __be32 *)(b + 4) != r->key)
				return NEXT;
			SKIP(b, n, 8);
		} else {
			SKIP(b, n, 4);
		}
		if (type != ETH_P_IP && type != ETH_P_IPV6)
			return NEXT;
		six = type == ETH_P_IPV6;
		break;
	}
	case IPPROTO_UDP: {
		const struct udphdr *udp = (const void *)b;

		if (!r->udp || (const void *)(b + sizeof(*udp) + 4) > end)
			return NEXT;
		if (udp->dest != r->port || bpf_ntohs(udp->len) != o->len - n)
			return NEXT;
		__u32 port = bpf_ntohs(udp->source) % HOLD_PORTS;

		o->until = bpf_map_lookup_elem(&ports, &port);
		if (!o->until)
			return NEXT;
		if (udp->check) /* of several packets that the director has sent at once: small ones have none */
			return hold(r, o);
		SKIP(b, n, sizeof(*udp));
		if (r->udp == UDP_GUE && b[0] >> 6 != 1) { /* variant 1 has no header */
			if (b[0] || b[2] || b[3] || (b[1] != IPPROTO_IPIP && b[1] != IPPROTO_IPV6))
				return NEXT;
			six = b[1] == IPPROTO_IPV6;
			SKIP(b, n, 4);
		} else {
			six = version(b) == 6;
		}
		break;
	}
	default:
		return NEXT;
	}
	if (held(r, o->until))
		return NEXT;
	return six ? inner6(skb, r, o, b, n) : inner4(skb, r, o, b, n);
}

/* accessible is the number of bytes that the checks may read: the longest headers of each kind, and UDP's ports. */
#define ACCESSIBLE (L2 + IP6 + 12 + IP6 + 8)

/* is_tunnel reports whether the protocol can be a tunnel's. */
static __always_inline int is_tunnel(const struct rules *r, __u8 proto)
{
	return proto == IPPROTO_IPIP || proto == IPPROTO_IPV6 || proto == IPPROTO_GRE ||
	       (proto == IPPROTO_UDP && r->udp);
}

/* pull makes the headers accessible, of a packet that may be shorter than ACCESSIBLE. */
static __always_inline void pull(struct __sk_buff *skb)
{
	if (unlikely(DATA(skb) + ACCESSIBLE > END(skb)) && skb->len >= ACCESSIBLE)
		bpf_skb_pull_data(skb, ACCESSIBLE);
}

static __always_inline int ipv4(struct __sk_buff *skb, struct rules *r)
{
	struct iphdr *ip = DATA(skb) + L2;
	struct outer o = {};

	if ((void *)(ip + 1) > END(skb) || !is_tunnel(r, ip->protocol))
		return NEXT;
	pull(skb);
	ip = DATA(skb) + L2;
	if ((void *)(ip + 1) > END(skb) || !plain4(ip))
		return NEXT;
	o.len = bpf_ntohs(ip->tot_len);
	if (o.len != skb->len - L2)
		return NEXT;
	struct ends4 ends = {.director = ip->saddr, .local = ip->daddr};

	o.count = bpf_map_lookup_elem(&pairs4, &ends);
	if (!o.count)
		return NEXT;
	o.class = ip->tos;
	o.proto = ip->protocol;
	return tunnel(skb, r, &o, IP4);
}

static __always_inline int ipv6(struct __sk_buff *skb, struct rules *r)
{
	struct ipv6hdr *ip = DATA(skb) + L2;
	struct outer o = {};

	if ((void *)(ip + 1) > END(skb) || !is_tunnel(r, ip->nexthdr))
		return NEXT;
	pull(skb);
	ip = DATA(skb) + L2;
	if ((void *)(ip + 1) > END(skb) || version(ip) != 6)
		return NEXT;
	o.len = bpf_ntohs(ip->payload_len) + IP6;
	if (o.len != skb->len - L2)
		return NEXT;
	struct ends6 ends = {.director = ip->saddr, .local = ip->daddr};

	o.count = bpf_map_lookup_elem(&pairs6, &ends);
	if (!o.count)
		return NEXT;
	o.class = class6(ip);
	o.proto = ip->nexthdr;
	o.six = 1;
	return tunnel(skb, r, &o, IP6);
}

SEC("tc")
int realserver(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct rules *r;

	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return NEXT;
	r = bpf_map_lookup_elem(&rules, &zero);
	if (!r || !r->device)
		return NEXT;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return ipv4(skb, r);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return ipv6(skb, r);
	return NEXT;
}
