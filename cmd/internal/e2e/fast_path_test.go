package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// TestFastPath: by every method, an upload passes the director in the kernel, and counts as if workers had forwarded
// it. Its end takes the connection out.
func TestFastPath(t *testing.T) { byMethod(t, testFastPath) }

func testFastPath(t *testing.T, m method, ipv6 bool) {
	s := newMethodSite(t, m, ipv6, 1, nil)
	s.startAgents("")
	s.startDirector("", service{"tcp", "80", "wrr", []int{1}})
	s.acceptUploads(s.Webs[0], 80)
	conn := s.dial("tcp", 80)
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	size := bulk() / 10
	upload := func() {
		t.Helper()
		answer, err := put(conn, size)
		if want := fmt.Sprintf("%d bytes, all as they should be", size); err != nil || answer != want {
			t.Fatalf("%q, %v", answer, err)
		}
	}
	uploads := 0
	testkit.Eventually(t, "the kernel has the connection", func() bool {
		upload()
		uploads++
		return s.director.balance().FastPath.Connections == 1
	})
	before := s.director.balance().FastPath.Taken.Bytes
	upload()
	st := s.director.balance()
	fast, total := st.FastPath, st.Services[0].Realservers[0].Forwarded
	if !fast.On || fast.Promoted < 1 || len(fast.Devices) == 0 {
		t.Errorf("%+v", fast)
	}
	info := tcpInfo(t, conn)
	t.Logf("of %d bytes TCP has sent %d again; it has seen %d reorderings", info.Bytes_sent, info.Bytes_retrans,
		info.Reord_seen)
	if payload := uint64((uploads + 1) * size); total.Bytes < payload || total.Bytes > info.Bytes_sent*11/10 {
		t.Errorf("the realserver got %d bytes, want some more than %d, and no more than TCP has sent, %d, with headers",
			total.Bytes, payload, info.Bytes_sent)
	}
	if n := fast.Taken.Bytes - before; n < uint64(size) {
		t.Errorf("the kernel has forwarded %d bytes of the second upload, which has %d", n, size)
	}
	if len(st.Drops) != 0 {
		t.Errorf("the director dropped %v", st.Drops)
	}
	_ = conn.Close()
	testkit.Eventually(t, "the connection has left the kernel", func() bool {
		return s.director.balance().FastPath.Connections == 0
	})
}

// TestFastPathOrder: datagrams that follow each other closely when the kernel gets their flow all arrive, each once.
// Those in the kernel can overtake those in the TUN device, once: successive ones, and no more than are on the way. The
// log has how many. The two ways may take turns meanwhile.
func TestFastPathOrder(t *testing.T) {
	t.Parallel()
	s := newRunningSite(t, 1, service{"udp", "53", "wrr", []int{1}})
	server, err := s.Webs[0].ListenPacket("udp", s.at(53))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	const total = 20_000
	onWay := make(chan struct{}, 100) // no queue gets full
	order := make(chan []uint32, 1)
	go func() {
		var all []uint32
		b := make([]byte, 2048)
		for len(all) < total {
			n, _, err := server.ReadFrom(b)
			if err != nil {
				break
			}
			if n == 4 {
				all = append(all, binary.BigEndian.Uint32(b))
				<-onWay
			}
		}
		order <- all
	}()
	if s.agents[0].intake().FastPath.On {
		other := s.dial("udp", 53)
		testkit.Eventually(t, "the agent's program takes packets", func() bool {
			if _, err := other.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			return s.agents[0].intake().FastPath.Taken.Packets > 0
		})
	}
	conn := s.dial("udp", 53)
	for i := range uint32(total) {
		select {
		case onWay <- struct{}{}:
		case <-time.After(soon):
			t.Fatalf("datagram %d is not sent: %d before it have not arrived", i, cap(onWay))
		}
		if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	all := testkit.Receive(t, "the datagrams", order)
	overtaken, turns, highest := 0, 0, uint32(0)
	first, last := uint32(total), uint32(0) // overtaken
	seen := make(map[uint32]bool, total)
	for i, n := range all {
		if seen[n] {
			t.Errorf("datagram %d came twice", n)
		}
		seen[n] = true
		if n < highest {
			overtaken++
			first, last = min(first, n), max(last, n)
			if i > 0 && all[i-1] >= highest {
				turns++
			}
		}
		highest = max(highest, n)
	}
	fast := s.director.balance().FastPath
	t.Logf("%d of %d datagrams by the kernel; %d overtaken, in %d places", fast.Taken.Packets, len(all), overtaken,
		turns)
	if overtaken > 0 && (overtaken > cap(onWay) || overtaken != int(last-first+1)) {
		t.Errorf("the overtaken ones are not %d successive ones at the most: the first is %d, the last %d", cap(onWay),
			first, last)
	}
	if len(all) != total {
		t.Errorf("%d datagrams arrived, want %d", len(all), total)
	}
	if fast.Taken.Packets < total/2 {
		t.Errorf("the kernel has forwarded %d of %d datagrams", fast.Taken.Packets, total)
	}
}

// mustBeFast sends requests to a named echo server until the kernel has the connection.
func (s *site) mustBeFast(c net.Conn, server string) {
	s.t.Helper()
	testkit.Eventually(s.t, "the kernel has the connection", func() bool {
		for range 20 {
			mustStay(s.t, c, server)
		}
		return s.fast(c)
	})
}

// fast reports whether the kernel has a connection of the client, as `director explain` says.
func (s *site) fast(c net.Conn) bool {
	s.t.Helper()
	return s.explain(c.LocalAddr().String(), c.RemoteAddr().String()).FastPath
}

// TestFastPathEnds: a connection leaves the kernel before a change of its realserver, or of the way there, is reported.
// It goes on by the TUN device, and comes back to the kernel where the change lets it.
func TestFastPathEnds(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startAgents(`encap = ["ipip", "gre"]`)
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
	}
	s.startDirectorWith(drainTOML("", web1+", "+web2))
	c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	for server != "web1" {
		c, server = s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	}
	s.mustBeFast(c, server)
	s.must("drain", "web", "10.0.11.2")
	mustStay(t, c, server)
	if !s.fast(c) {
		t.Error("a drain has taken its connection out of the kernel")
	}
	s.must("undrain", "web", "10.0.11.2")
	s.command(s.Director, "", "ip", "route", "replace", "10.0.11.2", "via", "10.0.2.1", "mtu", "1400")
	testkit.Eventually(t, "the kernel forgets the former path", func() bool { return !s.fast(c) })
	s.mustBeFast(c, server)
	s.reloadWith(drainTOML("", `{ address = "10.0.11.2", encap = "gre", encap_checksum = true }, `+web2))
	if s.fast(c) {
		t.Error("the kernel has a connection by a tunnel with a checksum")
	}
	mustStay(t, c, server)
	s.reloadWith(drainTOML("", web1+", "+web2))
	s.mustBeFast(c, server)
	s.reloadWith(drainTOML("", web2))
	if s.fast(c) {
		t.Error("the kernel has a connection of a realserver that is not configured any more")
	}
	mustStay(t, c, server)
	s.reloadWith("director.fast_path = \"off\"\n" + drainTOML("", web1+", "+web2))
	if st := s.director.balance().FastPath; st.On || st.Connections != 0 || st.Reason == "" {
		t.Errorf("switched off: %+v", st)
	}
	mustStay(t, c, server)
}

// TestFastPathRestart: a connection in the kernel outlives kill -9 of the director. Nothing of the program is left on
// the device.
func TestFastPathRestart(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startWith(drainTOML("", `{ address = "10.0.11.2" }`))
	c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	s.mustBeFast(c, server)
	s.director.kill()
	if left := run(t, s.Director, exec.Command("tc", "filter", "show", "dev", "eth0", "ingress")); left.stdout != "" {
		t.Errorf("the program is still there: %s", left.stdout)
	}
	s.director.start()
	s.mustBeFast(c, server)
	c.Close()
	testkit.Eventually(t, "the connection has left the kernel", func() bool {
		return s.director.balance().FastPath.Connections == 0
	})
}

// TestFastPathCapture: a capture has all packets of a connection that the kernel had.
func TestFastPathCapture(t *testing.T) {
	t.Parallel()
	needTool(t, "tshark", "tshark")
	s := newSite(t, 1, nil)
	s.startWith(drainTOML("", `{ address = "10.0.11.2" }`))
	c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	s.mustBeFast(c, server)
	capture, file := s.startCapture("--client", c.LocalAddr().String())
	const requests = 50
	for range requests {
		mustStay(t, c, server)
	}
	if s.fast(c) {
		t.Error("the kernel has a captured connection")
	}
	s.endCapture(capture)
	port := c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	if n := capturedFrom(t, file, port); n < 2*requests { // as read, and as sent
		t.Errorf("%d packets of %d requests were captured", n, requests)
	}
	s.mustBeFast(c, server)
}

// TestFastPathBlockedClient: a new rule of the firewall does not stop a connection that the kernel has. It does once a
// capture has taken the connection out, and the connection does not come back: see the manual, operating.md.
func TestFastPathBlockedClient(t *testing.T) {
	t.Parallel()
	needTool(t, "nft", "nftables")
	s := newSite(t, 1, nil)
	s.startWith(drainTOML("", `{ address = "10.0.11.2" }`))
	c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	s.mustBeFast(c, server)
	s.command(s.Director, fmt.Sprintf("table ip f { chain c { type filter hook forward priority 0; ip saddr %s drop; "+
		"}; }\n", s.Client.Addr), "nft", "-f", "-")
	for range 20 {
		mustStay(t, c, server)
	}
	capture, _ := s.startCapture("--client", s.Client.Addr.String())
	s.endCapture(capture)
	if answer, err := askName(c, "still there?"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("behind the rule: %q, %v", answer, err)
	}
	if s.fast(c) {
		t.Error("the kernel has the connection again")
	}
}

// TestFastPathNextCapture: a capture that has ended, but whose reader is slow, lets no connection of the next capture
// into the kernel when its reader ends.
func TestFastPathNextCapture(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startWith(drainTOML("", `{ address = "10.0.11.2" }`))
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	cmd := exec.Command(programPath("director"), "capture", "-w", "-", "-c", s.director.config)
	cmd.Stdout = writer
	first, err := s.Director.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	if _, err := reader.Read(make([]byte, 1)); err != nil { // it has begun; nothing more is read
		t.Fatal(err)
	}
	c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	line := strings.Repeat("a", 10_000)
	for range 200 { // more than all buffers on the way to the reader take
		if got, err := askName(c, line); err != nil || got != server {
			t.Fatalf("%q, %v", got, err)
		}
	}
	var ignored struct{}
	if err := api.Post(t.Context(), s.director.socket, "/capture/end", 0, &ignored); err != nil {
		t.Fatal(err)
	}
	second, _ := s.startCapture("--client", c.LocalAddr().String())
	mustStay(t, c, server)
	reader.Close()
	testkit.Receive(t, "the end of the first capture", first.Done())
	for range 20 { // far fewer packets than a capture takes
		for range 5 {
			mustStay(t, c, server)
		}
		if s.fast(c) {
			t.Fatal("the kernel has a captured connection")
		}
	}
	s.endCapture(second)
	s.mustBeFast(c, server)
}

// TestFastPathDevice: a device that comes later gets the program, though the director has given up its rights. It keeps
// it when something else changes. The log has each device that the program is attached to, once, and each that it has
// left.
func TestFastPathDevice(t *testing.T) {
	t.Parallel()
	s := newRunningSite(t, 1, service{"tcp", "80", "wrr", []int{1}})
	s.command(s.Director, "", "ip", "link", "add", "late", "type", "veth", "peer", "name", "other")
	s.command(s.Director, "", "ip", "address", "add", "10.77.0.1/24", "dev", "late")
	s.command(s.Director, "", "ip", "link", "set", "late", "up")
	testkit.Eventually(t, "the new device has the program", func() bool {
		return slices.Contains(s.director.balance().FastPath.Devices, "late")
	})
	s.must("drain", "s1", s.Webs[0].Addr.String())
	if at := s.director.balance().FastPath.Devices; !slices.Contains(at, "late") {
		t.Errorf("after a drain, the devices are %v", at)
	}
	s.command(s.Director, "", "ip", "link", "del", "late")
	testkit.Eventually(t, "the device is gone", func() bool {
		return !slices.Contains(s.director.balance().FastPath.Devices, "late")
	})
	s.director.mustLogHooks(map[string]int{`attached" devices=[eth0] hook=`: 1, `attached" devices=[late] hook=`: 1,
		`detached" devices=[late]`: 1})
}

// mustLogHooks waits until the program has logged these lines about devices of the fast path, each so often, and checks
// that it has logged no others.
func (p *program) mustLogHooks(want map[string]int) {
	p.t.Helper()
	all := 0
	for line, n := range want {
		testkit.Eventually(p.t, fmt.Sprintf("the log has %q %d times", line, n), func() bool {
			return strings.Count(p.Output(), `level=INFO msg="fast path `+line) == n
		})
		all += n
	}
	if got := strings.Count(p.Output(), `msg="fast path `); got != all {
		p.t.Errorf("%s: %d lines about the fast path, want %d:\n%s", p, got, all, p.Output())
	}
}

// capturedFrom returns the number of packets of a capture whose innermost source port is port.
func capturedFrom(t *testing.T, file string, port uint16) int {
	t.Helper()
	cmd := exec.Command("tshark", "-r", file, "-Y", fmt.Sprintf("tcp.srcport == %d", port), "-T", "fields", "-e",
		"frame.number")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	return strings.Count(string(out), "\n")
}
