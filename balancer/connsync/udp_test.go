package connsync

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"vstun/testdata/testkit"
)

// makePair makes a veth pair, e0 and e1, in this thread's namespace, and returns their addresses. index is of e0; 0: a
// free one.
func makePair(t *testing.T, six bool, index int) [2]netip.Addr {
	t.Helper()
	addrs := [2]netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("10.0.2.3")}
	if six {
		addrs = [2]netip.Addr{netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3")}
	}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	add := []string{"link", "add", "e0", "mtu", "1400"}
	if index != 0 {
		add = append(add, "index", strconv.Itoa(index))
	}
	ip(append(add, "type", "veth", "peer", "name", "e1", "mtu", "1400")...)
	ip("link", "set", "e0", "up")
	ip("link", "set", "e1", "up")
	for i, a := range addrs {
		dev := []string{"e0", "e1"}[i]
		if six {
			ip("addr", "add", a.String()+"/64", "dev", dev, "nodad")
		} else {
			ip("addr", "add", a.String()+"/24", "dev", dev)
		}
	}
	for _, key := range []string{"all/rp_filter=0", "e0/rp_filter=0", "e1/rp_filter=0", "e0/accept_local=1",
		"e1/accept_local=1"} { // both ends are in one namespace
		name, value, _ := strings.Cut(key, "=")
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name, []byte(value), 0); err != nil {
			t.Skip("SKIPPED: ", err)
		}
	}
	return addrs
}

// openPair opens a link on each end of a veth pair, e0 and e1.
func openPair(t *testing.T, config func(device string, peer netip.Addr) UDPConfig, six bool) (one, two *UDP, size int) {
	t.Helper()
	testkit.NewNamespace(t)
	addrs := makePair(t, six, 0)
	one, size, err := OpenUDP(config("e0", addrs[1]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { one.Close() })
	two, _, err = OpenUDP(config("e1", addrs[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { two.Close() })
	return one, two, size
}

// TestMulticast: datagrams of the size that fits the device reach the other end of a link, and do not come back.
func TestMulticast(t *testing.T) {
	for name, group := range map[string]string{"ipv4": "224.0.0.81", "ipv6": "ff02::81"} {
		t.Run(name, func(t *testing.T) {
			g := netip.MustParseAddr(group)
			one, two, size := openPair(t, func(device string, _ netip.Addr) UDPConfig {
				return UDPConfig{Interface: device, Group: g, Port: 8848}
			}, g.Is6())
			if want := map[string]int{"ipv4": 1372, "ipv6": 1352}[name]; size != want {
				t.Errorf("size %d, want %d", size, want)
			}
			got := make(chan int, 10)
			back := make(chan int, 10)
			go receiveAll(two, got)
			go receiveAll(one, back)
			// Until its address is settled an IPv6 device sends nothing.
			testkit.Eventually(t, "a datagram arrives", func() bool {
				if one.Send(make([]byte, size)) != nil {
					return false
				}
				select {
				case n := <-got:
					return n == size
				case <-time.After(50 * time.Millisecond):
					return false
				}
			})
			if err := two.Send(make([]byte, 7)); err != nil {
				t.Fatal(err)
			}
			if n := testkit.Receive(t, "the other direction", back); n != 7 {
				t.Errorf("a datagram of %d bytes, want 7: its own ones come back", n)
			}
		})
	}
}

// TestDeviceAnew: a link goes on when its device has been removed and made anew, with another index or the same.
func TestDeviceAnew(t *testing.T) {
	for name, config := range map[string]func(device string, peer netip.Addr) UDPConfig{
		"multicast": func(device string, _ netip.Addr) UDPConfig {
			return UDPConfig{Interface: device, Group: netip.MustParseAddr("224.0.0.81"), Port: 8848}
		},
		"unicast": func(device string, peer netip.Addr) UDPConfig {
			return UDPConfig{Interface: device, Peers: []netip.Addr{peer}, Port: 8848}
		},
	} {
		t.Run(name, func(t *testing.T) {
			one, two, _ := openPair(t, config, false)
			got, back := make(chan int, 10), make(chan int, 10)
			here, err := netns.Get()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { here.Close() })
			for l, to := range map[Link]chan int{two: got, one: back} {
				go func() {
					runtime.LockOSThread() // for good: the thread ends with its namespace
					if err := netns.Set(here); err == nil {
						receiveAll(l, to)
					}
				}()
			}
			if err := two.Send(make([]byte, 7)); err != nil || testkit.Receive(t, "a datagram", back) != 7 {
				t.Fatal(err)
			}
			remove := func() {
				t.Helper()
				if out, err := exec.Command("ip", "link", "del", "e0").CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			works := func(what string) {
				t.Helper()
				for _, way := range []struct {
					from Link
					to   chan int
				}{{one, got}, {two, back}} {
					testkit.Eventually(t, "a datagram arrives by "+what, func() bool {
						if way.from.Send(make([]byte, 9)) != nil {
							return false
						}
						select {
						case n := <-way.to:
							return n == 9
						case <-time.After(50 * time.Millisecond):
							return false
						}
					})
				}
			}
			remove()
			testkit.Eventually(t, "there is no device", func() bool { return one.Send(make([]byte, 8)) != nil })
			makePair(t, false, 0)
			works("the new device")
			was, err := net.InterfaceByName("e0")
			if err != nil {
				t.Fatal(err)
			}
			remove()
			makePair(t, false, was.Index)
			one.Renew()
			works("a device with the same index")
		})
	}
}

// receiveAll sends the lengths of all datagrams to got until the link is closed.
func receiveAll(l Link, got chan<- int) {
	b := make([]byte, 1<<16)
	for {
		n, _, err := l.Receive(b)
		if err != nil {
			return
		}
		got <- n
	}
}

// TestNoInterface: the error names the device.
func TestNoInterface(t *testing.T) {
	_, _, err := OpenUDP(UDPConfig{Interface: "none9", Group: netip.MustParseAddr("224.0.0.81"), Port: 8848})
	if err == nil || err.Error() != "interface none9: route ip+net: no such network interface" {
		t.Errorf("%v", err)
	}
}

// TestUnicast: datagrams go to each peer, and a peer that does not run is no error.
func TestUnicast(t *testing.T) {
	testkit.NewNamespace(t)
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, size, err := OpenUDP(UDPConfig{Port: 8848, Peers: []netip.Addr{netip.MustParseAddr("127.0.0.2"),
		netip.MustParseAddr("127.0.0.3")}})
	if err != nil || size != MaxSize {
		t.Fatal(size, err)
	}
	got := make(chan int, 10)
	go receiveAll(l, got)
	if err := l.Send(make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // both peers are this socket
		if n := testkit.Receive(t, "a datagram", got); n != 9 {
			t.Errorf("%d bytes, want 9", n)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := l.Receive(make([]byte, 10)); err == nil || !isClosed(err) {
		t.Errorf("after Close: %v", err)
	}
}

func isClosed(err error) bool {
	op, ok := err.(*net.OpError)
	return ok && op.Err == net.ErrClosed
}

// TestDeadPeers: peers that do not run keep no datagram from the living one, nor hold up the sender.
func TestDeadPeers(t *testing.T) {
	testkit.NewNamespace(t)
	run := func(command ...string) {
		t.Helper()
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	for _, command := range []string{"ip link add e0 type veth peer name e1", "ip link set e0 up", "ip link set e1 up",
		"ip addr add 10.0.2.2/24 dev e0",
		"ip neigh add 10.0.2.5 lladdr 02:00:00:00:00:05 dev e0 nud permanent"} {
		run(strings.Fields(command)...)
	}
	var peers []netip.Addr
	for _, p := range []string{"10.0.2.3", "10.0.2.4", "10.0.2.5"} {
		peers = append(peers, netip.MustParseAddr(p))
	}
	l, size, err := OpenUDP(UDPConfig{Interface: "e0", Port: 8848, Peers: peers})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := func() (datagrams int) {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(string(b), "e0:")
		n, err := strconv.Atoi(strings.Fields(line)[8]) // bytes sent
		if err != nil {
			t.Fatal(err)
		}
		return n / size
	}
	const n = 1000 // a bulk transfer sends 1,700 a second
	before, begin := sent(), time.Now()
	for range n {
		if err := l.Send(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took > 5*time.Second { // with a wait for each, 100 s
		t.Errorf("it took %v", took)
	}
	testkit.Eventually(t, "the living peer's datagrams are sent", func() bool { return sent()-before >= n })
}
