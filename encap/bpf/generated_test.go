package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"vstun/encap/packet"
)

// compile compiles the sources of both programs by the compiler that is installed.
func compile(t *testing.T) (director, realserver *ebpf.CollectionSpec) {
	t.Helper()
	for _, tool := range []string{"clang", "llvm-strip", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: needs %s (make deps)", tool)
		}
	}
	dir := t.TempDir()
	if out, err := exec.Command(filepath.Join("..", "..", ".ci", "bpf"), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	objects := "bpfel.o"
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		objects = "bpfeb.o"
	}
	spec := func(name string) *ebpf.CollectionSpec {
		s, err := ebpf.LoadCollectionSpec(filepath.Join(dir, name+"_"+objects))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return spec("director"), spec("realserver")
}

// TestGenerated: the objects in the repository do with each packet what the sources do when they are compiled now. The
// bytes of objects differ between compilers.
func TestGenerated(t *testing.T) {
	needRoot(t)
	directorSpec, realserverSpec := compile(t)
	d, err := newDirector(directorSpec, DirectorConfig{Flows4: 1 << 10, Flows6: 1 << 10, Paths: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := newRealserver(realserverSpec)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.settle = 0
	ours, theirs := newTestDirector(t), newTestRealserver(t)
	same := func(a, b *ebpf.Program, f []byte) {
		t.Helper()
		wantAction, want := run(t, a, f)
		action, got := run(t, b, f)
		if ip := packet.EthernetHeaderLen; action == redirect && !packet.IPv4(want[ip:]).DF() {
			finishOuter(got[ip:], want[ip:])
		}
		if action != wantAction || !bytes.Equal(got, want) {
			t.Errorf("compiled now: action %d, %x\nin the repository: %d, %x", action, got, wantAction, want)
		}
	}
	for _, outer := range []bool{false, true} {
		for _, c := range tunnels(outer) {
			rules, _ := rulesOf(decapsulator(c))
			if err := errors.Join(r.Set(rules), theirs.Set(rules)); err != nil {
				t.Fatal(err)
			}
			for _, inner := range []bool{false, true} {
				for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
					s := request(inner, proto)
					var refs [2]Ref
					for i, d := range []*Director{ours, d} {
						refs[i] = add(t, d, tunnelPath(t, c, inner), s, Flow{Port: sourcePort})
					}
					variants(s, func(_ string, s spec) {
						same(theirs.objects.Realserver, r.objects.Realserver, frame(wrapped(t, c, s.bytes())))
						same(ours.objects.Director, d.objects.Director, frame(s.bytes()))
					})
					for i := range 8 * 60 { // each bit of the headers
						b := frame(s.bytes())
						b[packet.EthernetHeaderLen+i/8] ^= 1 << (i % 8)
						same(ours.objects.Director, d.objects.Director, b)
						b = frame(wrapped(t, c, s.bytes()))
						b[packet.EthernetHeaderLen+i/8] ^= 1 << (i % 8)
						same(theirs.objects.Realserver, r.objects.Realserver, b)
					}
					if err := errors.Join(ours.Remove(refs[0]), d.Remove(refs[1])); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
}
