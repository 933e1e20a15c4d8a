package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// Answers leave by the agent's device if their servers name it. A server by packet info answers with the question's
// IP_PKTINFO, which includes the interface's index. A bound server has its socket on the device (SO_BINDTODEVICE).
const (
	answerPatience = 60 * time.Second // for steps that take seconds on an idle machine

	portWeb     = 80  // TCP, bound
	portInfo    = 53  // UDP, by packet info
	portBound   = 54  // UDP, bound
	portSegment = 55  // UDP, bound, many datagrams by one call (UDP_SEGMENT)
	portHTTP3   = 443 // quic-go, on all addresses

	segmentSize = 1200 // bytes of a datagram from portSegment
	segments    = 40   // of them
)

// TestAnswersByDevice fetches small and large answers from servers of every kind that name the device.
func TestAnswersByDevice(t *testing.T) { testkit.Families(t, testAnswersByDevice) }

func testAnswersByDevice(t *testing.T, ipv6 bool) {
	for _, offload := range []string{"auto", "off"} {
		t.Run(offload, func(t *testing.T) {
			s := newSite(t, 1, nil)
			s.speak(ipv6)
			s.startAgents(fmt.Sprintf("offload = %q", offload))
			s.startDirector("", service{"tcp", "80", "rr", []int{1}}, service{"udp", "[53, 54, 55, 443]", "rr",
				[]int{1}})
			s.deviceServers(s.Webs[0])
			by := s.byDevice()
			s.mustFetch(t, 3_000_000)
			// What follows counts no packets of this connection.
			testkit.Within(t, "the connection has ended", soon, func() bool {
				out := run(t, s.Webs[0], exec.Command("ss", "-Htan", "sport = :80")).stdout
				return !strings.Contains(out, "ESTAB") && !strings.Contains(out, "FIN-") && !strings.Contains(out,
					"LAST-ACK")
			})
			by("a bound TCP server", true)
			s.mustFetch3(t, 3_000_000)
			by("an HTTP/3 server", !ipv6) // over IPv6 the kernel may use another interface
			for _, size := range []int{1, 1400, 20_000} {
				s.mustAsk(t, portInfo, size)
			}
			by("a UDP server by packet info", !ipv6)
			for _, size := range []int{1, 1400, 20_000} {
				s.mustAsk(t, portBound, size)
			}
			by("a bound UDP server", true)
			s.mustAskSegments(t)
			by("a UDP server with UDP_SEGMENT", true)
			if st := s.agents[0].intake(); sum(st.Drops) > 0 {
				t.Errorf("the agent refused %v", st.Drops)
			}
		})
	}
}

// byDevice returns a function that fails the test unless answers have, or have not, left by the agent's device since
// its last call.
func (s *site) byDevice() func(what string, want bool) {
	var before uint64
	return func(what string, want bool) {
		s.t.Helper()
		testkit.Within(s.t, fmt.Sprintf("%s: answers have been counted: %v", what, want), soon, func() bool {
			return (s.agents[0].intake().Answers.Packets > before) == want
		})
		before = s.agents[0].intake().Answers.Packets
	}
}

// TestAnswersPathMTU: an answer exceeds the MTU of the realserver's own link, which its kernel knows, or that of the
// client's link, which a router reports.
func TestAnswersPathMTU(t *testing.T) {
	t.Parallel()
	testkit.Families(t, testAnswersPathMTU)
}

func testAnswersPathMTU(t *testing.T, ipv6 bool) {
	for _, narrow := range []string{"web1", "client"} {
		t.Run(narrow, func(t *testing.T) {
			s := newSite(t, 1, map[string]lab.Link{narrow: {MTU: 1400}})
			s.speak(ipv6)
			s.startAgents("")
			s.startDirector("", service{"tcp", "80", "rr", []int{1}}, service{"udp", "[53, 54, 443]", "rr", []int{1}})
			s.deviceServers(s.Webs[0])
			// the kernel learns the MTU by the first one
			ports := []uint16{portInfo, portBound}
			if ipv6 {
				ports = []uint16{portBound, portInfo}
			}
			for _, port := range ports {
				// The first answer of this size has DF, or is an IPv6 packet, and does not fit: its sender learns the
				// MTU. The next ones come in fragments.
				testkit.Within(t, fmt.Sprintf("the server at port %d has learned the path MTU", port), answerPatience,
					func() bool {
						return s.answer(port, 1440, time.Second) == nil
					})
				s.mustAsk(t, port, 20_000)
			}
			s.mustFetch(t, 1_000_000)
			s.mustFetch3(t, 1_000_000)
			st := s.agents[0].intake()
			if n := st.Drops["too_big"]; n == 0 || sum(st.Drops) != n {
				t.Errorf("the agent refused %v", st.Drops)
			}
		})
	}
}

// TestAnswersWithoutDF: answers without DF are fragmented, also where the host's own link has a smaller MTU than the
// agent's device.
func TestAnswersWithoutDF(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, map[string]lab.Link{"web1": {MTU: 1000}})
	s.startAgents("")
	s.startDirector("", service{"udp", "54", "rr", []int{1}})
	s.serveUDP(s.Webs[0], portBound, func(fd int) error {
		return errors.Join(unix.BindToDevice(fd, "vs0"), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER,
			unix.IP_PMTUDISC_DONT))
	}, nil)
	for _, size := range []int{900, 1440, 20_000} {
		s.mustAsk(t, portBound, size)
	}
	testkit.Within(t, "all answers have been counted", soon,
		func() bool { return s.agents[0].intake().Answers.Packets >= 1+2+13*2+1 })
	if st := s.agents[0].intake(); sum(st.Drops) > 0 || st.Answers.Packets != 1+2+13*2+1 {
		t.Errorf("the agent sent %d packets and refused %v", st.Answers.Packets, st.Drops)
	}
}

// TestAnswersWithoutTable: with mss = "off" there is no routing table for answers. The kernel takes the client for a
// neighbour on the device.
func TestAnswersWithoutTable(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents(`mss = "off"`)
	s.startDirector("", service{"tcp", "80", "rr", []int{1}}, service{"udp", "[53, 54, 55, 443]", "rr", []int{1}})
	s.deviceServers(s.Webs[0])
	by := s.byDevice()
	s.mustFetch(t, 1_000_000)
	by("a bound TCP server", true)
	s.mustFetch3(t, 1_000_000)
	by("an HTTP/3 server", true)
}

// TestAnswerLoop: if the kernel routes the agent's answers back into the device, each is refused when it returns.
func TestAnswerLoop(t *testing.T) { testkit.Families(t, testAnswerLoop) }

func testAnswerLoop(t *testing.T, ipv6 bool) {
	s := newSite(t, 1, nil)
	s.speak(ipv6)
	s.startAgents("")
	s.startDirector("", service{"udp", "54", "rr", []int{1}})
	s.serveUDP(s.Webs[0], portBound, func(fd int) error { return unix.BindToDevice(fd, "vs0") }, nil)
	s.mustAsk(t, portBound, 100)
	testkit.Within(t, "the first answer has been counted", soon,
		func() bool { return s.agents[0].intake().Answers.Packets == 1 })
	s.routeByDevice(s.Webs[0])
	const n = 20
	for range n {
		if err := s.answer(portBound, 100, tick); err == nil {
			t.Fatal("an answer has arrived by another path")
		}
	}
	testkit.Within(t, "all answers have come back", answerPatience,
		func() bool { return s.agents[0].intake().Drops["answer_loop"] >= n })
	st := s.agents[0].intake()
	if sent := st.Answers.Packets - 1; sent != n || sum(st.Drops) != n {
		t.Errorf("the agent sent %d packets and refused %v, want %d each", sent, st.Drops, n)
	}
	if ipv6 {
		return
	}
	done := make(chan struct{})
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		for {
			select {
			case <-done:
				return
			default:
				_ = s.answer(portBound, 100, tick) // none comes
			}
		}
	}()
	defer func() {
		close(done)
		<-asking
	}()
	says := symptom{"drops", []string{"answer_loop", "ip rule"}}
	testkit.Within(t, "the doctor names the loop", answerPatience,
		func() bool { return slices.ContainsFunc(s.agents[0].examine().Findings, says.is) })
}

// routeByDevice routes all packets from the VIP, of any socket, into the agent's device.
func (s *site) routeByDevice(h *lab.Host) {
	s.t.Helper()
	const table = 99
	err := h.Do(func() error {
		link, err := netlink.LinkByName("vs0")
		if err != nil {
			return err
		}
		rule := netlink.NewRule()
		rule.Priority, rule.Table = table, table
		rule.Src = &net.IPNet{IP: s.VIP.AsSlice(), Mask: net.CIDRMask(s.VIP.BitLen(), s.VIP.BitLen())}
		everywhere := &net.IPNet{IP: make(net.IP, s.VIP.BitLen()/8), Mask: net.CIDRMask(0, s.VIP.BitLen())}
		return errors.Join(netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere,
			Table: table}), netlink.RuleAdd(rule))
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestNoAnswers: the agent refuses other packets that the host sends into its device: from an address that is no VIP,
// or to one that can't be a client's.
func TestNoAnswers(t *testing.T) { testkit.Families(t, testNoAnswers) }

func testNoAnswers(t *testing.T, ipv6 bool) {
	s := newSite(t, 1, nil)
	s.speak(ipv6)
	s.startAgents("")
	web := s.Webs[0]
	arrived := s.count(s.Router, web.Name, lab.Filter{Source: web.Addr})
	group := netip.MustParseAddr("224.0.0.99")
	if ipv6 {
		group = netip.MustParseAddr("ff0e::99")
	}
	for i, c := range []struct{ from, to netip.Addr }{{web.Addr, s.Client.Addr}, {s.VIP, group}} {
		err := web.Do(func() error {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0)),
				Control: setSocket(func(fd int) error { return unix.BindToDevice(fd, "vs0") })}
			conn, err := d.Dial("udp", netip.AddrPortFrom(c.to, 9).String())
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("x"))
			return err
		})
		if err != nil {
			t.Fatalf("%v -> %v: %v", c.from, c.to, err)
		}
		testkit.Within(t, fmt.Sprintf("%v -> %v has been refused", c.from, c.to), soon,
			func() bool { return s.agents[0].intake().Drops["not_answer"] == uint64(i+1) })
	}
	st := s.agents[0].intake()
	if sum(st.Drops) != 2 || st.Answers.Packets != 0 || arrived() != 0 {
		t.Errorf("%d packets were sent, dropped %v; %d arrived at the router", st.Answers.Packets, st.Drops, arrived())
	}
}

// setSocket makes a net.Dialer or net.ListenConfig call set for each socket.
func setSocket(set func(fd int) error) func(_, _ string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = set(int(fd)) }), err)
	}
}

// deviceServers starts the servers on h.
func (s *site) deviceServers(h *lab.Host) {
	s.t.Helper()
	bound := func(fd int) error { return unix.BindToDevice(fd, "vs0") }
	s.serveUDP(h, portInfo, s.packetInfo, nil)
	s.serveUDP(h, portBound, bound, nil)
	s.serveUDP(h, portSegment, bound, []byte{segmentSize & 0xff, segmentSize >> 8})
	var ln net.Listener
	err := h.Do(func() (err error) {
		lc := net.ListenConfig{Control: setSocket(bound)}
		ln, err = lc.Listen(context.Background(), "tcp", net.JoinHostPort("", strconv.Itoa(portWeb)))
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(serveStream)}
	go web.Serve(ln)
	s.t.Cleanup(func() { web.Close() })

	quicServer := &http3.Server{Handler: http.HandlerFunc(serveStream),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{selfSigned(s.t)}}}
	conn := s.listenUDP(h, net.JoinHostPort(s.anywhere(), strconv.Itoa(portHTTP3)))
	go quicServer.Serve(conn)
	s.t.Cleanup(func() { quicServer.Close() })
}

// anywhere returns the prefix of all addresses of the VIP's family.
func (s *site) anywhere() string {
	if s.VIP.Is6() {
		return "::"
	}
	return "0.0.0.0"
}

// packetInfo enables IP_PKTINFO, or its IPv6 equivalent, on a socket.
func (s *site) packetInfo(fd int) error {
	if s.VIP.Is6() {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

// serveStream answers with the first bytes of the stream. Their number is the path.
func serveStream(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.Path[1:])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = io.CopyN(w, stream(), int64(n)) // the client compares
}

// serveUDP answers each datagram, a number n, with n bytes of the stream. If set enables packet info, it listens on all
// addresses and answers with the packet info of the question. Else it listens on the VIP, since the kernel would choose
// another source. size is the control message UDP_SEGMENT for the answers, nil for none.
func (s *site) serveUDP(h *lab.Host, port uint16, set func(fd int) error, size []byte) {
	s.t.Helper()
	address := s.VIP.String()
	if port == portInfo {
		address = s.anywhere()
	}
	var conn *net.UDPConn
	err := h.Do(func() error {
		lc := net.ListenConfig{Control: setSocket(set)}
		c, err := lc.ListenPacket(context.Background(), "udp", net.JoinHostPort(address, strconv.Itoa(int(port))))
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	s.t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		question, oob := make([]byte, 64), make([]byte, 256)
		for {
			n, on, _, from, err := conn.ReadMsgUDPAddrPort(question, oob)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			size1, _ := strconv.Atoi(string(question[:n]))
			about := oob[:on]
			if size != nil {
				about = segmented(size)
			}
			_, _, _ = conn.WriteMsgUDPAddrPort(payload(size1), about, from) // the client asks again
		}
	}()
}

// segmented returns the control message UDP_SEGMENT.
func segmented(size []byte) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(b[8:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(b[12:], unix.UDP_SEGMENT)
	copy(b[16:], size)
	return b
}

// answer asks for an answer of size bytes, once.
func (s *site) answer(port uint16, size int, patience time.Duration) error {
	conn, err := s.Client.Dial("udp", s.at(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(strconv.Itoa(size))); err != nil {
		return err
	}
	got := make([]byte, 65536)
	n, err := conn.Read(got)
	if err == nil && !bytes.Equal(got[:n], payload(size)) {
		err = fmt.Errorf("%d bytes came, not the %d that were asked for", n, size)
	}
	return err
}

func (s *site) mustAsk(t *testing.T, port uint16, size int) {
	t.Helper()
	if err := s.answer(port, size, soon); err != nil {
		t.Fatalf("an answer of %d bytes from port %d: %v; the agent: %+v", size, port, err, s.agents[0].intake())
	}
}

// mustAskSegments requests many datagrams, which the server sends by one call.
func (s *site) mustAskSegments(t *testing.T) {
	t.Helper()
	conn := s.dial("udp", portSegment)
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(strconv.Itoa(segments * segmentSize))); err != nil {
		t.Fatal(err)
	}
	whole, got := payload(segments*segmentSize), make([]byte, 65536)
	for i := range segments {
		n, err := conn.Read(got)
		if err != nil || !bytes.Equal(got[:n], whole[i*segmentSize:(i+1)*segmentSize]) {
			t.Fatalf("datagram %d of %d: %d bytes, %v; the agent: %+v", i+1, segments, n, err, s.agents[0].intake())
		}
	}
}

// mustFetch downloads by HTTP.
func (s *site) mustFetch(t *testing.T, n int) {
	t.Helper()
	client := s.browser()
	client.Timeout = answerPatience
	body, err := fetch(client, fmt.Sprintf("http://%s/%d", s.at(portWeb), n))
	if err != nil || body != string(payload(n)) {
		t.Fatalf("%d of %d bytes: %v; the agent: %+v", len(body), n, err, s.agents[0].intake())
	}
}

// mustFetch3 downloads by HTTP/3.
func (s *site) mustFetch3(t *testing.T, n int) {
	t.Helper()
	address := net.JoinHostPort(s.Client.Addr.String(), "0")
	transport := &quic.Transport{Conn: s.listenUDP(s.Client, address)}
	defer transport.Close()
	rt := &http3.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, cfg *quic.Config) (*quic.Conn, error) {
			return transport.DialEarly(ctx, net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.VIP, portHTTP3)), tlsConfig,
				cfg)
		},
	}
	defer rt.Close()
	client := &http.Client{Timeout: answerPatience, Transport: rt}
	body, err := fetch(client, fmt.Sprintf("https://%s/%d", s.at(portHTTP3), n))
	if err != nil || body != string(payload(n)) {
		t.Fatalf("HTTP/3: %d of %d bytes: %v; the agent: %+v", len(body), n, err, s.agents[0].intake())
	}
}

// selfSigned returns a certificate for clients that do not verify it.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
