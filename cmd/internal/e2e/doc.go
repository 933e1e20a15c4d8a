// Package e2e is the privileged end-to-end tests. They run the real programs on hosts that are network namespaces, with
// real servers and clients (nginx, curl, iperf3, and Go's own).
//
//	              client 10.0.1.2        curl, iperf3, raw sockets
//	                 |
//	           +------------+
//	     +-----|   router   |-----+-------- … one link for each web server
//	     |     +------------+     |
//	director 10.0.2.2         web1 10.0.11.2     web2 10.0.12.2     …
//	`director run`            `realserver run`, nginx, iperf3, Go servers on the VIP 198.51.100.80
//
// Each host also has an IPv6 address: 10.0.11.2 is fd00:0:11::2 as well, and the VIP 2001:db8:100::80.
//
// TestInterop… replace one of the programs by the kernel: by IPVS at the director, or by its tunnel devices at a
// realserver.
//
// The tests need root and /dev/net/tun, and some of them a tool. Without it they skip and say how to get it. They work
// in their own namespaces and leave nothing behind. With -short the long ones transfer and wait less.
//
// Files named helper_* have what the tests share.
package e2e
