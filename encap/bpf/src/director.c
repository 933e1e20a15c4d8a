/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The director's program, for ingress of an Ethernet device. It sends on the packets of flows that user space has
 * decided: into a tunnel, to a neighbour's MAC address, or with rewritten addresses. It leaves every other packet, and
 * every packet that needs a decision, to the kernel, unchanged.
 */
#include "common.h"

char _license[] SEC("license") = "Dual MIT/GPL";

/* Flows, as they stand in the packets. */
struct flow4 {
	__be32 src, dst;
	__be16 sport, dport;
	__u8 proto, pad[3];
};

struct flow6 {
	struct in6_addr src, dst;
	__be16 sport, dport;
	__u8 proto, pad[3];
};

/* PACKETS is the number of low bits of entry.count that count packets. The others count bytes. */
#define PACKETS 26

struct entry {
	__u64 count;       /* packets, and bytes of their IP packets << PACKETS: one addition counts both */
	__u32 last;        /* time of the last packet, see now() */
	__u32 path;        /* index in paths */
	__u32 generation;  /* of the path: the entry is void if the path has another one */
	__be16 port;       /* source port of UDP tunnels, or the VIP's port of a reply */
	__u16 vip;         /* index in vips: the new source address of a reply */
};

enum kind { TUNNEL = 1, LINK, NAT };

#define MAX_HEADER 52 /* of a tunnel: encap.MaxOverhead */

struct path {
	__u64 flags;       /* of bpf_skb_adjust_room */
	__u32 generation;  /* 0: no path */
	__u32 ifindex;     /* of the device to the realserver */
	struct bpf_redir_neigh next; /* its next hop; family 0: the kernel's route */
	__u32 sum;         /* of the outer IPv4 header without the fields that differ between packets */
	__u16 mtu;         /* largest packet that the path takes, in bytes */
	__u8 kind;
	__u8 length;       /* of header, in bytes */
	__u8 outer6;       /* the outer header is IPv6 */
	__u8 udp;          /* the tunnel goes over UDP */
	__u8 family;       /* of the flows: 4 or 6 */
	__u8 pad;
	/*
	 * TUNNEL: the headers. LINK: Ethernet's header. NAT: struct nat.
	 */
	__u8 header[56];
};

struct nat {
	__be32 address[4]; /* the realserver's */
	__be16 port;       /* 0: the packet's own */
	__u16 pad;
	__u32 director;    /* index of the director's device */
};

/* Reads of other CPUs during an update are harmless: see Director.Add. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct path);
} paths SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct in6_addr);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct flow4);
	__type(value, struct entry);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct flow6);
	__type(value, struct entry);
} flows6 SEC(".maps");

/* packet is what the headers of a packet say. */
struct packet {
	__u32 len;     /* of the IP packet, in bytes */
	__u32 segment; /* the same for the largest segment of a GSO packet */
	__u32 gso;     /* payload of a segment; 0: no GSO packet */
	__be16 sport, dport;
	__be16 id;     /* of IPv4 */
	__u8 class, proto, six;
	__u8 df;       /* of IPv4 */
	__u8 turns;    /* TCP with SYN, FIN or RST: user space has to decide what becomes of the flow */
	__u8 unchecked; /* UDP without checksum */
	__u32 first[3]; /* the first 12 bytes of the IP header */
};

/* pull makes the first n bytes of a packet accessible and reports whether they are. */
static __always_inline int pull(struct __sk_buff *skb, __u32 n)
{
	return DATA(skb) + n <= END(skb) || (skb->len >= n && !bpf_skb_pull_data(skb, n));
}

/*
 * transport reads the header of TCP or UDP behind an IP header of n bytes. It returns 0 if the packet is none that the
 * program takes. in->len is set.
 */
static __always_inline int transport(struct __sk_buff *skb, struct packet *in, int n)
{
	void *at = DATA(skb) + L2 + n, *end = END(skb);
	__u32 headers;

	if (in->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = at;

		if ((void *)(tcp + 1) > end)
			return 0;
		const __u8 *b = at;
		const __u8 fin = 1, syn = 2, rst = 4, ack = 16;

		in->turns = !!(b[13] & (fin | syn | rst));
		if (!(b[13] & ack) && !in->turns)
			return 0;
		headers = (b[12] >> 4) * 4;
		if (headers < sizeof(*tcp))
			return 0;
		in->sport = tcp->source;
		in->dport = tcp->dest;
		in->unchecked = 0;
	} else if (in->proto == IPPROTO_UDP) {
		struct udphdr *udp = at;

		if ((void *)(udp + 1) > end)
			return 0;
		headers = sizeof(*udp);
		in->sport = udp->source;
		in->dport = udp->dest;
		in->unchecked = !udp->check;
	} else {
		return 0;
	}
	headers += n;
	if (in->len < headers || in->len + L2 > skb->len)
		return 0;
	in->gso = skb->gso_size;
	in->segment = in->gso ? headers + in->gso : in->len;
	return 1;
}

/* out redirects the packet to the path's next hop. */
static __always_inline int out(const struct path *p)
{
	struct bpf_redir_neigh next = p->next;

	if (next.nh_family)
		return bpf_redirect_neigh(p->ifindex, &next, sizeof(next), 0);
	return bpf_redirect_neigh(p->ifindex, 0, 0, 0);
}

/*
 * Packets up to SMALL bytes go without a question to the device, which costs time: it loses them if it is gone, or has a
 * smaller MTU now, until user space removes the path. SMALL is encap.MinMTU6.
 */
#define SMALL 1280

/*
 * fits reports whether the packet, with n more bytes, fits the path as user space knows it and the path's device as it
 * is now.
 */
static __always_inline int fits(struct __sk_buff *skb, const struct packet *in, const struct path *p, __u32 n)
{
	__u32 len = in->segment + n, mtu = len;

	if (len > p->mtu || in->len + n > 0xffff)
		return 0;
	return len <= SMALL || (!bpf_check_mtu(skb, p->ifindex, &mtu, 0, 0) && len <= mtu);
}

/* trim cuts a link's padding off. */
static __always_inline int trim(struct __sk_buff *skb, const struct packet *in)
{
	return skb->len == L2 + in->len || (!in->gso && !bpf_skb_change_tail(skb, L2 + in->len, 0));
}

/* lower lowers the TTL in the first 12 bytes of an IP header, and updates IPv4's checksum: RFC 1624. */
static __always_inline void lower(struct packet *in)
{
	if (in->six) {
		in->first[1] -= bpf_htonl(1);
		return;
	}
	in->first[2] -= bpf_htonl(1 << 24);
	__u32 check = (in->first[2] & bpf_htonl(0xffff));

	check = bpf_ntohl(check) + 0x100;
	check += check >= 0xffff;
	in->first[2] = (in->first[2] & bpf_htonl(0xffff0000)) | bpf_htonl(check & 0xffff);
}

/* wrap puts the tunnel's headers before the packet: encap.Tunnel.Wrap and Seal. */
static __always_inline int wrap(struct __sk_buff *skb, struct packet *in, const struct entry *e, struct path *p)
{
	__u32 n = p->length, len = in->len + n;
	union {
		__u8 b[64];
		__u16 h[32];
		__u32 w[16];
	} h;
	__u8 ttl;
	int err = -1;

	/*
	 * Datagrams that are one GSO packet would reach the tunnel's end as one where no card segments them. A raw socket
	 * there can't separate them, and a UDP socket takes their size for that of tunnel packets.
	 */
	if (in->gso && in->proto == IPPROTO_UDP)
		return NEXT;
	if (!fits(skb, in, p, n) || !trim(skb, in) || bpf_skb_adjust_room(skb, n, BPF_ADJ_ROOM_MAC, p->flags))
		return NEXT;
	lower(in);
	ttl = in->six ? bpf_ntohl(in->first[1]) : bpf_ntohl(in->first[2]) >> 24;
	/* Merged datagrams: egress.Output.defeatGRO says why the TTL of datagrams takes turns. */
	__u8 outer_ttl = ttl;

	if (in->proto == IPPROTO_UDP && !p->udp && ttl > 32)
		outer_ttl -= e->count & 3;
	__builtin_memcpy(h.b, p->header, MAX_HEADER);
	if (p->outer6) {
		h.w[0] |= bpf_htonl(in->class << 20);
		h.w[1] = (h.w[1] & bpf_htonl(0xff00)) | bpf_htonl((len - IP6) << 16 | outer_ttl);
		if (p->udp) {
			h.h[IP6 / 2] = e->port;
			h.h[IP6 / 2 + 2] = bpf_htons(len - IP6);
		}
	} else {
		__u16 id = 0; /* RFC 6864: only a packet that may be fragmented needs one */

		if (!in->df) {
			id = bpf_get_prandom_u32();
			id += !id;
		}
		h.w[0] |= bpf_htonl(in->class << 16 | (len & 0xffff));
		h.h[2] = id;
		h.h[3] = in->df ? bpf_htons(DONT_FRAGMENT) : 0;
		h.w[2] |= bpf_htonl(outer_ttl << 24);
		h.h[5] = ~fold((__u64)p->sum + bpf_htons(in->class) + bpf_htons(len) + id + h.h[3] +
			       bpf_htons(outer_ttl << 8));
		if (p->udp) {
			h.h[IP4 / 2] = e->port;
			h.h[IP4 / 2 + 2] = bpf_htons(len - IP4);
		}
	}
	/* One write covers the tunnel's headers and the inner TTL behind them. */
#define WRITE(length)                                                         \
	case length:                                                          \
		__builtin_memcpy(h.b + length, in->first, sizeof(in->first)); \
		err = bpf_skb_store_bytes(skb, L2, h.b, length + 12, 0);      \
		break;
	switch (n) {
		WRITE(20)
		WRITE(24)
		WRITE(28)
		WRITE(32)
		WRITE(40)
		WRITE(44)
		WRITE(48)
		WRITE(52)
	}
	return err ? DROP : out(p);
}

/* link sends the packet to a neighbour's MAC address: method DR. */
static __always_inline int link(struct __sk_buff *skb, struct packet *in, const struct path *p)
{
	if (!in->six && !in->id && !in->df)
		return NEXT; /* the worker gives it an ID: RFC 6864, section 4.1 */
	if (!fits(skb, in, p, 0) || !trim(skb, in))
		return NEXT;
	lower(in);
	__u8 h[L2 + sizeof(in->first)];

	__builtin_memcpy(h, p->header, L2);
	__builtin_memcpy(h + L2, in->first, sizeof(in->first));
	return bpf_skb_store_bytes(skb, 0, h, sizeof(h), 0) ? NEXT : bpf_redirect(p->ifindex, 0);
}

/*
 * replace replaces one end's address and port: packet.ReplaceDst, and ReplaceSrc for a reply. port 0 leaves the port.
 * It returns 0, or an error if it has changed nothing.
 */
static __always_inline int replace(struct __sk_buff *skb, struct packet *in, int reply, const __be32 *from,
				   const __be32 *to, __be16 old_port, __be16 port)
{
	int udp = in->proto == IPPROTO_UDP, n = in->six ? IP6 : IP4;
	int check = L2 + n + (udp ? 6 : 16);
	__u64 mark = udp ? BPF_F_MARK_MANGLED_0 : 0;

	if (in->six) {
		__s64 diff = bpf_csum_diff((__be32 *)from, 16, (__be32 *)to, 16, 0);

		if (bpf_l4_csum_replace(skb, check, 0, diff, BPF_F_PSEUDO_HDR | mark))
			return -1;
		bpf_skb_store_bytes(skb, L2 + (reply ? 8 : 24), to, 16, 0);
		if (reply)
			in->first[2] = to[0]; /* IPv6's first 12 bytes reach into its source */
	} else {
		if (bpf_l4_csum_replace(skb, check, from[0], to[0], BPF_F_PSEUDO_HDR | mark | 4))
			return -1;
		__u16 sum = ~(in->first[2] >> 16); /* in->first[2] is TTL, protocol and checksum as they stand there */

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
		sum = ~in->first[2];
#endif
		sum = ~fold((__u64)sum + (__u32)~from[0] + to[0]);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
		in->first[2] = (in->first[2] & 0xffff0000) | sum;
#else
		in->first[2] = (in->first[2] & 0xffff) | (__u32)sum << 16;
#endif
		bpf_skb_store_bytes(skb, L2 + (reply ? 12 : 16), to, 4, 0);
	}
	lower(in);
	bpf_skb_store_bytes(skb, L2, in->first, sizeof(in->first), 0);
	if (port && port != old_port) {
		bpf_l4_csum_replace(skb, check, old_port, port, mark | 2);
		bpf_skb_store_bytes(skb, L2 + n + (reply ? 0 : 2), &port, 2, 0);
	}
	return 0;
}

/* ends sets the addresses of fib. */
static __always_inline void ends(const struct packet *in, struct bpf_fib_lookup *fib, const __be32 *src,
				 const __be32 *dst)
{
	if (in->six) {
		__builtin_memcpy(fib->ipv6_src, src, 16);
		__builtin_memcpy(fib->ipv6_dst, dst, 16);
	} else {
		fib->ipv4_src = src[0];
		fib->ipv4_dst = dst[0];
	}
}

/*
 * way asks the kernel for the way of a reply by NAT, whose new addresses and ports are in fib: as if it came in by the
 * director's device, where user space would have written it. It returns 0 if there is one that the packet fits.
 */
static __always_inline int way(struct __sk_buff *skb, const struct packet *in, const struct nat *n,
			       struct bpf_fib_lookup *fib)
{
	int err;

	fib->family = in->six ? AF_INET6 : AF_INET;
	fib->l4_protocol = in->proto;
	fib->tot_len = in->segment;
	fib->ifindex = n->director;
	if (in->six)
		fib->flowinfo = in->first[0] & bpf_htonl(0x0fffffff); /* traffic class and flow label */
	else
		fib->tos = in->class;
	err = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
	return err != BPF_FIB_LKUP_RET_SUCCESS && err != BPF_FIB_LKUP_RET_NO_NEIGH;
}

/* leave redirects the packet to the way that fib has: its next hop is now in place of the destination's address. */
static __always_inline int leave(const struct bpf_fib_lookup *fib)
{
	struct bpf_redir_neigh next = {.nh_family = fib->family};

	__builtin_memcpy(next.ipv6_nh, fib->ipv6_dst, 16);
	return bpf_redirect_neigh(fib->ifindex, &next, sizeof(next), 0);
}

/* request sends the packet to the realserver's own address and port: method NAT. */
static __always_inline int request(struct __sk_buff *skb, struct packet *in, const __be32 *dst, const struct path *p)
{
	struct nat n;

	__builtin_memcpy(&n, p->header, sizeof(n));
	if (in->unchecked || !fits(skb, in, p, 0) || !trim(skb, in) ||
	    replace(skb, in, 0, dst, n.address, in->dport, n.port))
		return NEXT; /* the worker computes a checksum for a datagram without one */
	return out(p);
}

/* reply sends the realserver's packet on to the client, from the VIP: method NAT. */
static __always_inline int reply(struct __sk_buff *skb, struct packet *in, const __be32 *src, const __be32 *dst,
				 const struct entry *e, const struct path *p)
{
	__u32 index = e->vip;
	const struct in6_addr *vip = bpf_map_lookup_elem(&vips, &index);
	struct bpf_fib_lookup fib = {};
	__be32 from[4];
	struct nat n;

	if (!vip || in->unchecked)
		return NEXT;
	__builtin_memcpy(&n, p->header, sizeof(n));
	__builtin_memcpy(from, vip, sizeof(from));
	ends(in, &fib, from, dst);
	fib.sport = e->port;
	fib.dport = in->dport;
	if (way(skb, in, &n, &fib) || !trim(skb, in) || replace(skb, in, 1, src, from, in->sport, e->port))
		return NEXT;
	return leave(&fib);
}

/* forward sends the packet on as its flow's entry says. src and dst are its addresses. */
static __always_inline int forward(struct __sk_buff *skb, struct packet *in, struct entry *e, const __be32 *src,
				   const __be32 *dst)
{
	__u32 index = e->path, time = now();
	const struct path *live = bpf_map_lookup_elem(&paths, &index);
	struct path p;
	int action = NEXT;

	if (in->turns) {
		e->generation = 0; /* what comes behind this packet must not overtake it */
		return NEXT;
	}
	if (!live || !leased())
		return NEXT;
	p = *live;
	barrier();
	__u32 generation = *(const volatile __u32 *)&e->generation;

	/*
	 * Before and after the copy: so that it is of this generation, whole. 0 is no generation: an ended flow's and a
	 * removed path's.
	 */
	if (!generation || p.generation != generation || *(const volatile __u32 *)&live->generation != generation)
		return NEXT;
	switch (p.kind) {
	case TUNNEL:
		action = wrap(skb, in, e, &p);
		break;
	case LINK:
		action = link(skb, in, &p);
		break;
	case NAT:
		action = e->vip ? reply(skb, in, src, dst, e, &p) : request(skb, in, dst, &p);
		break;
	}
	if (action != NEXT) {
		__sync_fetch_and_add(&e->count, ((__u64)in->len << PACKETS) + 1);
		e->last = time;
	}
	return action;
}

static __always_inline int ipv4(struct __sk_buff *skb)
{
	struct packet in = {};
	struct flow4 f = {};

	if (!pull(skb, L2 + IP4 + 20))
		if (!pull(skb, L2 + IP4 + 8))
			return NEXT;
	struct iphdr *ip = DATA(skb) + L2;

	if ((void *)(ip + 1) > END(skb) || ip->ttl <= 1 || !plain4(ip))
		return NEXT;
	in.len = bpf_ntohs(ip->tot_len);
	in.proto = ip->protocol;
	if (!transport(skb, &in, IP4))
		return NEXT;
	f.src = ip->saddr;
	f.dst = ip->daddr;
	f.sport = in.sport;
	f.dport = in.dport;
	f.proto = in.proto;
	struct entry *e = bpf_map_lookup_elem(&flows4, &f);

	if (!e)
		return NEXT;
	in.class = ip->tos;
	in.id = ip->id;
	in.df = !!(ip->frag_off & bpf_htons(DONT_FRAGMENT));
	__builtin_memcpy(in.first, ip, sizeof(in.first));
	return forward(skb, &in, e, &f.src, &f.dst);
}

static __always_inline int ipv6(struct __sk_buff *skb)
{
	struct packet in = {};
	struct flow6 f = {};

	if (!pull(skb, L2 + IP6 + 20))
		if (!pull(skb, L2 + IP6 + 8))
			return NEXT;
	struct ipv6hdr *ip = DATA(skb) + L2;

	if ((void *)(ip + 1) > END(skb) || version(ip) != 6 || ip->hop_limit <= 1)
		return NEXT;
	in.len = bpf_ntohs(ip->payload_len) + IP6;
	in.proto = ip->nexthdr;
	in.six = 1;
	if (!transport(skb, &in, IP6))
		return NEXT;
	f.src = ip->saddr;
	f.dst = ip->daddr;
	f.sport = in.sport;
	f.dport = in.dport;
	f.proto = in.proto;
	struct entry *e = bpf_map_lookup_elem(&flows6, &f);

	if (!e)
		return NEXT;
	in.class = class6(ip);
	__builtin_memcpy(in.first, ip, sizeof(in.first));
	return forward(skb, &in, e, f.src.in6_u.u6_addr32, f.dst.in6_u.u6_addr32);
}

SEC("tc")
int director(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return NEXT;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return ipv4(skb);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return ipv6(skb);
	return NEXT;
}
