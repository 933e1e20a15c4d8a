package doctor

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/encap/wire"
)

// listener is a socket that waits for clients.
type listener struct {
	at    netip.AddrPort
	inode string // "0": the kernel's own
}

// listening lists the sockets of a protocol, "tcp" or "udp", that wait for clients, from /proc/net.
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

// parseSockets reads what /proc/net/tcp and its like have: "0: 0100007F:0050 00000000:0000 0A … inode …" (get_tcp4_sock
// in net/ipv4/tcp_ipv4.c). Of TCP it keeps those in state LISTEN, of UDP those that are not connected.
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

// portsFor are the ports at which listeners take what is for a. One on all addresses of IPv6 is taken to be for IPv4 as
// well, as is the default.
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

// servers examines whether somebody listens on the VIPs. Which ports should be served the agent does not know.
func (e *exam) servers(cfg *config.Realserver) {
	tcp, err := listening("tcp")
	if e.failed(err) {
		return
	}
	udp, err := listening("udp")
	if e.failed(err) {
		return
	}
	for _, vip := range cfg.VIPs {
		ports := portsFor(tcp, vip)
		served := slices.ContainsFunc(udp, func(l listener) bool { return l.at.Addr() == vip })
		if len(ports) == 0 && !served {
			e.find(Finding{Severity: Warning, Where: fmt.Sprintf("VIP %s", vip),
				What: "no server listens on it, nor, over TCP, on all addresses", Why: "its clients are refused",
				Fix: "ss -ltn",
				Remarks: []string{fmt.Sprintf("start the server, on %s or on all addresses", vip),
					"one on the VIP itself starts after the agent (After=vstun-realserver.service)"}})
			continue
		}
		e.fine("%s: TCP ports %s", vip, portList(ports))
	}
	e.wildcardUDP(cfg, udp)
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

// ownUDP are UDP ports that a host has for itself: DHCP, NTP, mDNS, LLMNR, portmap.
func ownUDP() []uint16 { return []uint16{67, 68, 546, 547, 123, 323, 5353, 5355, 111} }

// wildcardUDP hints at UDP servers on all addresses: without packet info they answer from the address that the route
// gives, not from the VIP that was asked.
func (e *exam) wildcardUDP(cfg *config.Realserver, udp []listener) {
	for _, l := range udp {
		at := l.at
		agents := at.Port() == cfg.EncapPort && (slices.Contains(cfg.Encaps, "gue") || slices.Contains(cfg.Encaps,
			"fou"))
		if !at.Addr().IsUnspecified() || agents || slices.Contains(ownUDP(), at.Port()) || at.Port() >= 32768 ||
			l.inode == "0" {
			continue
		}
		e.find(Finding{Severity: Hint, Where: fmt.Sprintf("UDP port %d", at.Port()),
			What: fmt.Sprintf("%s listens on all addresses", owner(l.inode)),
			Why: "if it serves a VIP, it must answer from the address that was asked (IP_PKTINFO), as HTTP/3 " +
				"servers do: clients drop answers from another one",
			Remarks: []string{"let it listen on the VIP, if it does not"}})
	}
}

// encapPort examines whether another program has the UDP port of gue or fou; pid is the agent's, 0 where it does not
// run.
func (e *exam) encapPort(s *Realserver, pid int) {
	if !slices.ContainsFunc(s.Sockets, func(w wire.Socket) bool { return w.Protocol == packet.ProtoUDP }) {
		return
	}
	udp, err := listening("udp")
	if e.failed(err) {
		return
	}
	if _, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); pid != 0 && err != nil {
		e.skip("which sockets the agent has: %v", err)
		return
	}
	for _, l := range udp {
		if l.at.Port() != s.Config.EncapPort || pid != 0 && owns(pid, l.inode) {
			continue
		}
		e.find(Finding{Severity: Error, Where: fmt.Sprintf("UDP port %d", l.at.Port()),
			What:    fmt.Sprintf("%s has it, on %s", owner(l.inode), l.at.Addr()),
			Why:     "it takes the tunnel's packets, or keeps the agent from starting",
			Fix:     fmt.Sprintf("ss -lunp sport = :%d", l.at.Port()),
			Remarks: []string{"end it, or set another encap_port here and at the directors"}})
	}
	if len(e.findings) == 0 {
		e.fine("UDP port %d is the agent's, or free", s.Config.EncapPort)
	}
}

// owner names the program that has a socket.
func owner(inode string) string {
	if inode == "0" {
		return "the kernel (ip fou show)"
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // a wrong pattern is the only error
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if !owns(pid, inode) {
			continue
		}
		name, err := os.ReadFile(dir + "/comm")
		if err == nil {
			return fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(name)), pid)
		}
	}
	return "a program"
}

// owns reports whether a process has a socket.
func owns(pid int, inode string) bool {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); err == nil &&
			to == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}
