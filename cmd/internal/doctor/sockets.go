package doctor

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/encap/wire"
)

// listener is a socket that receives packets from any client.
type listener struct {
	at    netip.AddrPort
	inode string // "0": the kernel's own
}

// listening returns the sockets of a protocol, "tcp" or "udp", that receive packets from any client.
//
// It reads /proc/net itself, which every kernel has. Socket diagnosis (netlink) would load the modules tcp_diag and
// udp_diag, which a kernel may lack (CONFIG_INET_UDP_DIAG is off by default). Package procfs reads addresses correctly
// only on little-endian machines.
func listening(protocol string) (all []listener, err error) {
	for _, name := range []string{protocol, protocol + "6"} {
		text, err := os.ReadFile("/proc/net/" + name)
		if errors.Is(err, fs.ErrNotExist) { // no IPv6
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, parseSockets(string(text), protocol == "tcp")...)
	}
	return all, nil
}

// parseSockets parses /proc/net/tcp and its like: "0: 0100007F:0050 00000000:0000 0A … inode …" (get_tcp4_sock in
// net/ipv4/tcp_ipv4.c). It returns TCP sockets in state LISTEN, and UDP sockets that are not connected.
func parseSockets(text string, tcp bool) (all []listener) {
	const (
		listen      = "0A" // TCP_LISTEN
		unconnected = "07" // TCP_CLOSE
	)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 || tcp && f[3] != listen || !tcp && f[3] != unconnected {
			continue
		}
		host, port, _ := strings.Cut(f[1], ":")
		b, err := hex.DecodeString(host)
		n, err2 := strconv.ParseUint(port, 16, 16)
		if err != nil || err2 != nil || len(b)%4 != 0 {
			continue
		}
		for i := 0; i < len(b); i += 4 { // each word is printed as this machine's number
			binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
		}
		if a, ok := netip.AddrFromSlice(b); ok {
			all = append(all, listener{netip.AddrPortFrom(a.Unmap(), uint16(n)), f[9]})
		}
	}
	return all
}

// portsFor returns the ports on which a listener receives packets to a. A listener on all IPv6 addresses counts for
// IPv4 as well: this is the kernel's default.
func portsFor(all []listener, a netip.Addr) (ports []uint16) {
	for _, l := range all {
		to := l.at.Addr()
		if (to == a || to.IsUnspecified() && (to.Is6() || a.Is4())) && !slices.Contains(ports, l.at.Port()) {
			ports = append(ports, l.at.Port())
		}
	}
	slices.Sort(ports)
	return ports
}

// servers examines whether servers listen on the VIPs. The agent does not know the services' ports.
func (res *result) servers(cfg *config.Realserver) {
	tcp, err := listening("tcp")
	if res.failed(err) {
		return
	}
	udp, err := listening("udp")
	if res.failed(err) {
		return
	}
	here, err := served(cfg)
	if res.failed(err) {
		return
	}
	if len(here) == 0 {
		res.fine("no VIP is an address of this host: its own servers get no packets of theirs")
		return
	}
	for _, vip := range here {
		ports := portsFor(tcp, vip)
		served := slices.ContainsFunc(udp, func(l listener) bool { return l.at.Addr() == vip })
		if len(ports) == 0 && !served {
			res.find(Finding{Severity: Warning, Where: fmt.Sprintf("VIP %s", vip),
				What: "no server listens on it, nor, over TCP, on all addresses", Why: "its clients are refused",
				Fix: "ss -ltn",
				Remarks: []string{fmt.Sprintf("start the server, on %s or on all addresses", vip),
					"one on the VIP itself starts after the agent (After=vstun-realserver.service)"}})
			continue
		}
		res.fine("%s: TCP ports %s", vip, portList(ports))
	}
	res.wildcardUDP(cfg, udp)
}

func portList(ports []uint16) string {
	var names []string
	for _, p := range ports {
		names = append(names, strconv.Itoa(int(p)))
	}
	if names == nil {
		return "none"
	}
	return brief(names)
}

// ownUDP returns the UDP ports of a host's own services: DHCP, NTP, mDNS, LLMNR, portmap.
func ownUDP() []uint16 { return []uint16{67, 68, 546, 547, 123, 323, 5353, 5355, 111} }

// wildcardUDP records hints about UDP servers on all addresses: without IP_PKTINFO they answer from the route's source
// address, not from the VIP.
func (res *result) wildcardUDP(cfg *config.Realserver, udp []listener) {
	for _, l := range udp {
		at := l.at
		agents := at.Port() == cfg.EncapPort && (slices.Contains(cfg.Encaps, "gue") || slices.Contains(cfg.Encaps,
			"fou")) || cfg.SecondChance.On && int(at.Port()) == cfg.SecondChance.Port
		if !at.Addr().IsUnspecified() || agents || slices.Contains(ownUDP(), at.Port()) || at.Port() >= 32768 ||
			l.inode == "0" {
			continue
		}
		res.find(Finding{Severity: Hint, Where: fmt.Sprintf("UDP port %d", at.Port()),
			What: fmt.Sprintf("%s listens on all addresses", owner(l.inode)),
			Why: "if it serves a VIP, it must answer from the address that was asked (IP_PKTINFO), as HTTP/3 " +
				"servers do: clients drop answers from another one",
			Remarks: []string{"let it listen on the VIP, if it does not"}})
	}
}

// encapPort examines whether another program has the UDP port of gue or fou. pid is the agent's process, 0 if it does
// not run.
func (res *result) encapPort(s *Realserver, pid int) {
	if !slices.ContainsFunc(s.Sockets, func(w wire.Socket) bool { return w.Protocol == packet.ProtoUDP }) {
		return
	}
	udp, err := listening("udp")
	if res.failed(err) {
		return
	}
	var agent procfs.Proc
	if pid != 0 {
		if agent, err = procfs.NewProc(pid); res.failed(err) {
			return
		}
	}
	for _, l := range udp {
		if l.at.Port() != s.Config.EncapPort {
			continue
		}
		if pid != 0 {
			owned, err := owns(agent, l.inode)
			if err != nil {
				res.skip("the agent's sockets: %v", err)
				return
			}
			if owned {
				continue
			}
		}
		res.find(Finding{Severity: Error, Where: fmt.Sprintf("UDP port %d", l.at.Port()),
			What:    fmt.Sprintf("%s has it, on %s", owner(l.inode), l.at.Addr()),
			Why:     "it takes the tunnel's packets, or keeps the agent from starting",
			Fix:     fmt.Sprintf("ss -lunp sport = :%d", l.at.Port()),
			Remarks: []string{"end it, or set another encap_port here and at the directors"}})
	}
	if len(res.findings) == 0 {
		res.fine("UDP port %d is the agent's, or free", s.Config.EncapPort)
	}
}

// owner returns the name of the program that has a socket.
func owner(inode string) string {
	if inode == "0" {
		return "the kernel (ip fou show)"
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return "a program"
	}
	for _, p := range all {
		if owned, err := owns(p, inode); err != nil || !owned {
			continue
		}
		if name, err := p.Comm(); err == nil {
			return fmt.Sprintf("%s (process %d)", name, p.PID)
		}
	}
	return "a program"
}

// owns reports whether a process has a socket.
func owns(p procfs.Proc, inode string) (bool, error) {
	targets, err := p.FileDescriptorTargets()
	return slices.Contains(targets, "socket:["+inode+"]"), err
}
