package conntab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// TestEachStore lets another process write to a table, whose memory is read-only there: each instruction that stores
// something stops the process, and is executed alone. After each one a table takes the memory over, as if the process
// had ended there. What it finds must be whole entries: those
// that were there before the writer's present operation or will be there after it, and all that are in both.
func TestEachStore(t *testing.T) {
	for name, ipv6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			if ipv6 {
				testkit.NeedFull(t, "takes some 10 s of a CPU")
			}
			testEachStore(t, ipv6)
		})
	}
}

func testEachStore(t *testing.T, ipv6 bool) {
	runtime.LockOSThread() // it traces, and ends with the test
	w := startWriter(t, ipv6)
	model := newOperated(nil, ipv6)
	var may, must map[entryName]bool
	stores, taken, op := 0, 0, -1
	begin := time.Now()
	for w.step(t) {
		if now := w.operation(); now != op { // the next operation
			op = now
			may, must = model.bounds(op)
		}
		stores++
		next := NewIn(nil, storesConfig)
		a := next.Adopt(left(w.sections()), storesTime(op), storesTime(op), same)
		mustAgree(t, next)
		found := map[entryName]bool{}
		for c := range next.All(storesTime(op)) {
			taken++
			n, err := nameOf(c)
			if err != nil {
				t.Errorf("operation %d, store %d: %v", op, stores, err)
			}
			found[n] = true
			if !may[n] {
				t.Errorf("operation %d, store %d: %+v should not be there", op, stores, n)
			}
		}
		for n := range must {
			if !found[n] {
				t.Errorf("operation %d, store %d: %+v is lost", op, stores, n)
			}
		}
		if a.Invalid+a.Unknown+a.Full > 0 {
			t.Errorf("operation %d, store %d: %+v", op, stores, a)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	if stores < 3*storesOperations() || taken < stores {
		t.Errorf("only %d operations, %d stores, %d entries", op+1, stores, taken)
	}
	t.Logf("%d operations, %d stores, %d entries taken over, in %v", op+1, stores, taken, time.Since(begin))
}

var storesConfig = Config{Max: 64, HalfOpenMax: 8}

func storesOperations() int {
	if testing.Short() {
		return 300
	}
	return 3000
}

// storesTime is the time of an operation.
func storesTime(op int) Ticks { return Ticks(op+1) * PerSecond }

// operated is a table and the operations that change it, which are the same in both processes.
type operated struct {
	View
	ipv6    bool
	sweeper *Sweeper
	between func()      // called between the steps of an operation
	replace func(n int) // called before template n is removed and added again
}

func newOperated(m Memory, ipv6 bool) *operated {
	t := NewIn(m, storesConfig)
	if ipv6 {
		t.ipv6(true)
	}
	return &operated{t.View(), ipv6, t.NewSweeper(), func() {}, func(int) {}}
}

// entryName is what makes an entry: everything else about it follows from n.
type entryName struct {
	n        int
	template bool
}

// flow returns flow n. No two flows have an address or a port in common.
func (o *operated) flow(n int) packet.Flow {
	f := packet.Flow{SrcPort: uint16(1000 + n), DstPort: uint16(5000 + n),
		Src: netip.AddrFrom4([4]byte{10, 1, 2, byte(n)}), Dst: netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}),
		Proto: []uint8{packet.ProtoTCP, packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP}[n%4]}
	if o.ipv6 {
		b := byte(n)
		f.Src = netip.AddrFrom16([16]byte{0x20, 1, b, b, b, b, b, b, b, b, b, b, b, b, b, b})
		f.Dst = netip.AddrFrom16([16]byte{0x20, 2, b, b, b, b, b, b, b, b, b, b, b, b, b, b})
	}
	return f
}

// nameOf returns the name of an entry, and an error if a part of it belongs to another one.
func nameOf(c Conn) (entryName, error) {
	ipv6 := c.Flow.Src.Is6()
	b := c.Flow.Src.AsSlice()
	n := int(b[len(b)-1])
	want := (&operated{ipv6: ipv6}).flow(n)
	if c.Template {
		want = packet.Flow{Src: want.Src}
	}
	if c.Flow != want || c.Dest != uint32(n) || c.Template && c.Service != 7 {
		return entryName{}, fmt.Errorf("no whole entry: %+v", c)
	}
	return entryName{n, c.Template}, nil
}

// names returns the names of all entries at the time of an operation.
func (o *operated) names(op int) map[entryName]bool {
	all := map[entryName]bool{}
	for c := range o.All(storesTime(op)) {
		n, err := nameOf(c)
		if err != nil {
			panic(err)
		}
		all[n] = true
	}
	return all
}

// bounds makes operation number op, and returns the entries that there may be and must be at each moment of it.
func (o *operated) bounds(op int) (may, must map[entryName]bool) {
	may, must = o.names(op), o.names(op)
	o.between = func() {
		now := o.names(op)
		maps.Copy(may, now)
		maps.DeleteFunc(must, func(n entryName, _ bool) bool { return !now[n] })
	}
	replaced := -1
	o.replace = func(n int) { replaced = n }
	o.operate(op)
	o.between()
	delete(must, entryName{replaced, true})
	return may, must
}

// operate makes operation number op.
func (o *operated) operate(op int) {
	rnd := rand.New(rand.NewPCG(uint64(op), 1))
	n, now := rnd.IntN(60), storesTime(op)
	p := packet.Info{Flow: o.flow(n), Len: 60, TCPFlags: packet.FlagACK, SCTPChunk: uint8(rnd.IntN(16))}
	switch rnd.IntN(10) {
	case 0, 1, 2, 3:
		p.TCPFlags, p.SCTPChunk = packet.FlagSYN, packet.ChunkInit
	case 4:
		p.TCPFlags = packet.FlagFIN
	case 5:
		p.TCPFlags = packet.FlagRST
	}
	switch kind := rnd.IntN(12); {
	case kind == 0:
		o.sweeper.Sweep(now, 60)
	case kind == 1:
		o.Pin(o.flow(n+100), uint32(n), false, now)
	case kind == 2:
		o.Unpin(o.flow(n+100), now, 0)
	case kind == 3:
		o.Report(Conn{Flow: p.Flow, State: begun(p.Flow.Proto), Dest: uint32(n), Expires: time.Minute},
			Ordered, now)
	case kind == 4:
		o.Leave(&p, uint32(n))
	default:
		if _, r := o.Packet(&p, FromClient, now); r != Miss {
			return
		}
		o.between()
		template := uint32(0)
		if n%3 == 0 {
			var r Result
			if _, template, r = o.Template(p.Flow.Src, 7, now); r == Miss || kind == 5 {
				former := template
				o.replace(n)
				_, template, _ = o.PutTemplate(p.Flow.Src, 7, uint32(n), time.Hour, former, now)
				if former != 0 {
					o.Release(former)
				}
				o.between()
			}
		}
		o.Insert(&p, uint32(n), template, now)
	}
}

// arena is a Memory in a shared mapping. Its first page has the number of the present operation, uint64, and a list of
// the sections, as JSON behind its length, uint64.
type arena struct {
	memory []byte
	list   []arenaSection
}

type arenaSection struct {
	Name      string
	Layout    uint32
	At, Bytes int
}

const (
	arenaHeader = 4096
	arenaSize   = 1 << 16
)

func (a *arena) word(i int) *uint64 { return (*uint64)(unsafe.Pointer(&a.memory[8*i])) }

func (a *arena) Section(name string, layout uint32, size int) []byte {
	at := arenaHeader
	for _, s := range a.list {
		at = s.At + (s.Bytes+63)&^63
	}
	a.list = append(a.list, arenaSection{name, layout, at, size})
	text, err := json.Marshal(a.list)
	if err != nil {
		panic(err)
	}
	*a.word(1) = uint64(len(text))
	copy(a.memory[16:arenaHeader], text)
	return a.memory[at : at+size : at+size]
}

// mapArena maps the file at path.
func mapArena(path string) *arena {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, arenaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return &arena{memory: b}
}

// storesEnv makes the test binary the writer: it has the path of the shared memory.
const storesEnv = "VSTUN_STORES"

// Orders to the writer, a byte each. It answers each with a byte.
const (
	orderReadOnly = 'r'
	orderWritable = 'w'
	orderBegin    = 'b'
)

func TestMain(m *testing.M) {
	if path := os.Getenv(storesEnv); path != "" {
		write(path, os.Args[1] == "IPv6", os.Args[2])
		return
	}
	os.Exit(m.Run())
}

// write is the writer's main function. It prints the number of the thread that makes the operations, and follows the
// orders. Before the first operation the thread sends itself SIGUSR2, after the last one SIGUSR1.
func write(path string, ipv6 bool, operations string) {
	debug.SetGCPercent(-1)
	n, err := strconv.Atoi(operations)
	if err != nil {
		panic(err)
	}
	a := mapArena(path)
	o := newOperated(a, ipv6)
	begin := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		fmt.Println(unix.Gettid())
		<-begin
		_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGUSR2)
		for op := range n {
			atomic.StoreUint64(a.word(0), uint64(op))
			o.operate(op)
		}
		_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGUSR1)
	}()
	for order := make([]byte, 1); ; {
		if _, err := os.Stdin.Read(order); err != nil {
			return
		}
		access := unix.PROT_READ
		switch order[0] {
		case orderBegin:
			close(begin)
		case orderWritable:
			access |= unix.PROT_WRITE
			fallthrough
		case orderReadOnly:
			if err := unix.Mprotect(a.memory[arenaHeader:], access); err != nil {
				panic(err)
			}
		}
		if _, err := os.Stdout.Write(order); err != nil {
			return
		}
	}
}

// writer is the other process, as its tracer has it.
type writer struct {
	*arena
	thread  int
	traced  bool
	orders  io.Writer
	answers *bufio.Reader
}

// startWriter starts the writer, which stops itself before its first operation. Stopped from here, its thread could be
// anywhere in Go's scheduler, and hold a lock that the orders need.
func startWriter(t *testing.T, ipv6 bool) *writer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, make([]byte, arenaSize), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &writer{arena: mapArena(path)}
	t.Cleanup(func() { _ = unix.Munmap(w.memory) })
	cmd := exec.Command("/proc/self/exe", map[bool]string{true: "IPv6", false: "IPv4"}[ipv6],
		fmt.Sprint(storesOperations()))
	cmd.Env = append(os.Environ(), storesEnv+"="+path, "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if w.orders, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		for w.traced { // its tracer must take note of the thread's end
			var status unix.WaitStatus
			_, err := unix.Wait4(w.thread, &status, unix.WALL, nil)
			w.traced = err == unix.EINTR || err == nil && status.Stopped()
		}
		_ = cmd.Wait() // it was killed
	})
	w.answers = bufio.NewReader(out)
	if _, err := fmt.Fscanln(w.answers, &w.thread); err != nil {
		t.Fatal(err)
	}
	if err := unix.PtraceSeize(w.thread); errors.Is(err, unix.EPERM) {
		t.Skip("SKIPPED: no right to trace a process")
	} else if err != nil {
		t.Fatal(err)
	}
	w.traced = true
	if err := json.Unmarshal(w.memory[16:16+*w.word(1)], &w.list); err != nil {
		t.Fatal(err)
	}
	w.order(t, orderReadOnly)
	w.order(t, orderBegin)
	if s := w.wait(t); s != unix.SIGUSR2 {
		t.Fatalf("the writer stops at %v", s)
	}
	return w
}

// order gives the writer an order and waits for the answer.
func (w *writer) order(t *testing.T, order byte) {
	t.Helper()
	if _, err := w.orders.Write([]byte{order}); err != nil {
		t.Fatal(err)
	}
	if answer, err := w.answers.ReadByte(); err != nil || answer != order {
		t.Fatalf("the writer answers %q, %v", answer, err)
	}
}

// wait waits until the writer's thread stops, and returns the signal that has stopped it.
func (w *writer) wait(t *testing.T) unix.Signal {
	t.Helper()
	var status unix.WaitStatus
	_, err := unix.Wait4(w.thread, &status, unix.WALL, nil)
	for err == unix.EINTR {
		_, err = unix.Wait4(w.thread, &status, unix.WALL, nil)
	}
	if err != nil || !status.Stopped() {
		t.Fatalf("the writer has ended: %#x, %v", uint32(status), err)
	}
	return status.StopSignal()
}

// step lets the writer go on until it has stored something. It returns false when the last operation has ended. The
// writer does not see the signals.
func (w *writer) step(t *testing.T) bool {
	t.Helper()
	for {
		if err := unix.PtraceCont(w.thread, 0); err != nil {
			t.Fatal(err)
		}
		switch w.wait(t) {
		case unix.SIGUSR1:
			return false
		case unix.SIGSEGV:
			w.order(t, orderWritable)
			if err := unix.PtraceSingleStep(w.thread); err != nil {
				t.Fatal(err)
			}
			if s := w.wait(t); s != unix.SIGTRAP {
				t.Fatalf("a step ends with %v", s)
			}
			w.order(t, orderReadOnly)
			return true
		}
	}
}

// operation returns the number of the writer's present operation.
func (w *writer) operation() int { return int(atomic.LoadUint64(w.word(0))) }

// sections returns the sections of the memory.
func (w *writer) sections() sections {
	all := sections{}
	for _, s := range w.list {
		all[s.Name] = section{s.Layout, w.memory[s.At : s.At+s.Bytes]}
	}
	return all
}
