package balancer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer/conntab"
	"vstun/balancer/keep"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/testdata/testkit"
)

// TestKill kills a process under load at random moments, 1,000 with VSTUN_FULL=1: in its start, while it takes over
// what the process before has left, and while packets, reloads and a sweeper change its table. Each process examines
// what it has taken over. The connections that the first one has made are there in all.
func TestKill(t *testing.T) {
	kills := 100
	switch {
	case testkit.Full():
		kills = 1000
	case testing.Short():
		kills = 20
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64m"); errors.Is(err, unix.EPERM) {
		t.Skip("SKIPPED: no right to mount a tmpfs")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "t.table")
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	loaded, most := 0, 0
	longest := 60 * time.Millisecond // a process lives; a slow machine needs longer to get it under load
	for i := range kills + 1 {
		var out output
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), killEnv+"="+path, fmt.Sprint(killNumber, "=", i))
		cmd.Stdout, cmd.Stderr = &out, &out
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		switch {
		case i == 0 || i == kills: // the first makes its connections; the last examines
			testkit.Eventually(t, "the process works", func() bool { return strings.Contains(out.String(), "\n") })
			longest = max(longest, 3*time.Since(begin))
		default:
			time.Sleep(time.Duration(rnd.Int64N(int64(longest)))) // a random moment
		}
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		if strings.Contains(out.String(), "FAULT") || cmd.ProcessState.Exited() {
			t.Fatalf("process %d, killed after %v, says:\n%s", i, time.Since(begin), out.String())
		}
		var connections int
		if n, _ := fmt.Sscanf(out.String(), "loaded %d", &connections); n == 1 {
			loaded++
			most = max(most, connections)
		}
	}
	t.Logf("%d processes killed, %d of them under load, with up to %d connections taken over", kills, loaded, most)
	if loaded < kills/10 || most < 1000 {
		t.Error("too few were killed under load")
	}
}

// output is what a process has written so far.
type output struct {
	mu  sync.Mutex
	all []byte
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, b...)
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.all)
}

const (
	killEnv    = "VSTUN_KILL"        // path of the table: this process is to be killed
	killNumber = "VSTUN_KILL_NUMBER" // of the process
	marked     = 100                 // connections that stay
)

func TestMain(m *testing.M) {
	if path := os.Getenv(killEnv); path != "" {
		if err := beKilled(path, os.Getenv(killNumber) == "0"); err != nil {
			fmt.Println("FAULT:", err)
		}
		select {}
	}
	os.Exit(m.Run())
}

// beKilled takes over the table at path, examines it, and works on it for ever.
func beKilled(path string, first bool) error {
	former, err := keep.Open(path)
	if err != nil && (!first || !errors.Is(err, os.ErrNotExist)) {
		return err
	}
	var noRoom error
	f, err := keep.Create(path, "test", former, func(_ string, err error) { noRoom = err })
	if err != nil {
		return err
	}
	start := time.Now()
	now := func() conntab.Ticks { return conntab.Ticks(time.Since(start) / (time.Second / conntab.PerSecond)) }
	table := conntab.NewIn(f, conntab.Config{Max: 8192, HalfOpenMax: 4096})
	b := NewIn(f, table, 2)
	rnd := rand.New(rand.NewPCG(uint64(start.UnixNano()), 2))
	if err := b.Apply(killConfig(rnd)); err != nil {
		return err
	}
	taken := 0
	if former != nil {
		then := conntab.Ticks(former.Now() / (time.Second / conntab.PerSecond))
		a := b.Adopt(former, then, now())
		if a.Unknown+a.Invalid+a.Full > 0 {
			return fmt.Errorf("dropped: %+v", a)
		}
		taken = a.Connections
		if err := examine(b, now()); err != nil {
			return fmt.Errorf("%w; %+v", err, a)
		}
	} else {
		for n := range marked {
			p := flow(n<<16, packet.FlagSYN)
			if d, reason := b.Snapshot().Decide(p, now()); d == nil {
				return errors.New(reason.String())
			}
			p.TCPFlags = packet.FlagACK
			b.Snapshot().Decide(p, now())
		}
	}
	f.SetBase(time.Since(start))
	if err := errors.Join(noRoom, f.Commit()); err != nil {
		return err
	}
	if former != nil {
		if err := former.Close(); err != nil {
			return err
		}
	}
	fmt.Printf("loaded %d\n", taken)
	for worker := range 2 {
		go pound(b, worker, now)
	}
	sweeper := table.NewSweeper()
	for {
		if err := b.Apply(killConfig(rnd)); err != nil {
			return err
		}
		sweeper.Sweep(now(), 1000)
		b.Save()
	}
}

// killConfig has the service web, whose realserver follows from the client, a persistent service of IPv4 and IPv6, and
// random realservers of that one.
func killConfig(rnd *rand.Rand) Config {
	fixed, changing := web("sh"), web("wrr")
	for n := range 8 {
		fixed.Realservers = append(fixed.Realservers, rs(n+1, 1))
	}
	changing.Name, changing.Ports = "changing", []PortRange{{8000, 8999}}
	changing.VIPs = []netip.Addr{vip, killVIP6}
	changing.Persistence = Persistence{Timeout: time.Hour, Mask4: 32, Mask6: 128}
	for n := range 1 + rnd.IntN(20) {
		changing.Realservers = append(changing.Realservers, rs(100+n, 1+rnd.IntN(3)))
	}
	return Config{Services: []Service{fixed, changing}}
}

var killVIP6 = netip.MustParseAddr("2001:db8::80")

// pound sends packets of random connections. Those of the first connections to web are left alone.
func pound(b *Balancer, worker int, now func() conntab.Ticks) {
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(worker)))
	for {
		p := flow((marked+rnd.IntN(2000))<<16, []uint8{packet.FlagSYN, packet.FlagACK, packet.FlagFIN,
			packet.FlagRST}[rnd.IntN(4)])
		if rnd.IntN(2) == 0 {
			p.Flow.DstPort = uint16(8000 + rnd.IntN(3))
			if rnd.IntN(2) == 0 {
				from := p.Flow.Src.As4()
				p.Flow.Src, p.Flow.Dst = netip.AddrFrom16([16]byte{0x20, 1, 14: from[2], 15: from[3]}), killVIP6
			}
		}
		if d, reason := b.Snapshot().Decide(p, now()); reason == drop.Accept {
			d.Count(worker, 1, 40)
		}
	}
}

// examine returns an error unless the counts agree with the connections, and each is at a realserver that it can have.
func examine(b *Balancer, now conntab.Ticks) error {
	counts := map[uint32][3]int{}
	entries, markedThere := 0, 0
	s := b.Snapshot()
	fixed := b.services["web"]
	for c := range b.Connections(now) {
		entries++
		n := counts[c.Dest]
		switch {
		case c.Template:
			n[2]++
		case c.State.Active():
			n[0]++
		default:
			n[1]++
		}
		counts[c.Dest] = n
		d, _ := s.dest(c.Dest)
		if d == nil {
			return fmt.Errorf("%+v leads nowhere", c)
		}
		isFixed := !c.Template && c.Flow.DstPort == 80
		if isFixed != (d.stats.service == "web") || (d.Address.As4()[3] < 100) != isFixed {
			return fmt.Errorf("%+v is at %s of service %s", c, d.Address, d.stats.service)
		}
		if isFixed {
			p := packet.Info{Flow: c.Flow}
			if want := fixed.sched.pick(fixed.list, &p, now); want != d {
				return fmt.Errorf("%+v is at %s, not at %s", c, d.Address, want.Address)
			}
			from := c.Flow.Src.As4()
			if n := int(from[2])<<8 | int(from[3]); n < marked && c.State == conntab.Established {
				markedThere++
			}
		}
	}
	if markedThere != marked {
		return fmt.Errorf("of the first process's connections %d are there", markedThere)
	}
	if b.table.Len() != entries {
		return fmt.Errorf("the table counts %d entries and has %d", b.table.Len(), entries)
	}
	for n := range uint32(len(b.numbers)) {
		c := b.table.Counts(n)
		if got := [3]int{c.Active(), c.Inactive(), c.Templates()}; got != counts[n] {
			return fmt.Errorf("destination %d counts %v and has %v", n, got, counts[n])
		}
	}
	return nil
}
