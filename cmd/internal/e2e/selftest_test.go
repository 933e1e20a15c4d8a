package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// newSelftest builds the topology of the kernel's own test of IPVS (tools/testing/selftests/net/netfilter/ipvs.sh),
// with its names and addresses. The client is the bridge, which leads to the director, and directly to the server.
//
//	client                       director                        web1
//	br0 10.0.0.2 ─ veth01 ────── veth10 10.0.0.1
//	                             veth12 172.16.0.1 ───────────── veth21 172.16.0.2
//	             ─ veth02 ────────────────────────────────────── veth20 10.0.0.3
func newSelftest(t *testing.T, m method) *site {
	t.Helper()
	s := newSite(t, 1, nil)
	web := s.Webs[0]
	for _, h := range []*lab.Host{s.Client, s.Director, web} {
		s.command(h, "", "ip", "link", "del", "eth0")
	}
	s.command(s.Client, fmt.Sprintf(`link add br0 type bridge
link add veth01 type veth peer name veth10 netns %[1]s
link add veth02 type veth peer name veth20 netns %[2]s
link set veth01 master br0 up
link set veth02 master br0 up
link set br0 up
addr add 10.0.0.2/24 dev br0
`, s.Director.Namespace, web.Namespace), "ip", "-batch", "-")
	s.command(s.Director, fmt.Sprintf(`link add veth12 type veth peer name veth21 netns %s
addr add 10.0.0.1/24 dev veth10
addr add 172.16.0.1/24 dev veth12
link set veth10 up
link set veth12 up
`, web.Namespace), "ip", "-batch", "-")
	s.command(web, `addr add 172.16.0.2/24 dev veth21
addr add 10.0.0.3/24 dev veth20
link set veth21 up
link set veth20 up
`, "ip", "-batch", "-")
	addr := netip.MustParseAddr
	s.VIP = addr("207.175.44.110")
	s.command(s.Client, "", "ip", "route", "add", s.VIP.String(), "via", "10.0.0.1", "dev", "br0")
	switch m {
	case dr: // requests come by veth21, and the route to the client leads to veth20
		for _, key := range []string{"all", "veth21"} {
			if err := web.Sysctl("net.ipv4.conf."+key+".rp_filter", "0"); err != nil {
				t.Fatal(err)
			}
		}
	case nat:
		s.command(web, "link del veth20\nroute add default via 172.16.0.1 dev veth21\n", "ip", "-batch", "-")
	}
	s.method, s.unmapped = m, true
	s.Client.Addr, s.Director.Addr, web.Addr = addr("10.0.0.2"), addr("172.16.0.1"), addr("172.16.0.2")
	s.vips, s.sources = []netip.Addr{s.VIP}, []netip.Addr{s.Director.Addr}
	return s
}

// TestSelftest is the kernel's own test of IPVS with our programs, for each forwarding method: the client sends a file,
// and the server must receive its bytes.
func TestSelftest(t *testing.T) {
	t.Parallel()
	for _, m := range []method{dr, nat, tun} {
		t.Run(string(m), func(t *testing.T) {
			s := newSelftest(t, m)
			s.startAgents("")
			s.startDirector("", service{"tcp", "8080", "rr", []int{1}})
			for _, size := range []int{32, 1_000_000} { // the kernel's test has 32
				s.mustReceive(size)
			}
			if st := s.director.balance(); len(st.Drops) != 0 || st.SendError != "" {
				t.Errorf("the director dropped %v, send error %q", st.Drops, st.SendError)
			}
		})
	}
}

// mustReceive sends a file of n bytes from the client to port 8080 of the VIP, and compares what the server receives.
func (s *site) mustReceive(n int) {
	s.t.Helper()
	ln, err := s.Webs[0].Listen("tcp4", s.behind(s.Webs[0], 8080))
	if err != nil {
		s.t.Fatal(err)
	}
	defer ln.Close()
	file := make([]byte, n)
	_, _ = io.ReadFull(stream(), file) // never fails
	type received struct {
		bytes []byte
		err   error
	}
	got := make(chan received, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- received{nil, err}
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(soon)) // fails only for what is closed
		b, err := io.ReadAll(c)
		got <- received{b, err}
	}()
	c := s.dial("tcp4", 8080)
	if _, err := c.Write(file); err != nil {
		s.t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		s.t.Fatal(err)
	}
	if r := testkit.Receive(s.t, "the server has the file", got); r.err != nil || !bytes.Equal(r.bytes, file) {
		s.t.Errorf("the server received %d bytes, %v; want the %d of the file", len(r.bytes), r.err, n)
	}
}
