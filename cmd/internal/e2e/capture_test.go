package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// startCapture starts `director capture` into a file, and returns once it has begun.
func (s *site) startCapture(flags ...string) (p *lab.Process, file string) {
	s.t.Helper()
	file = filepath.Join(s.t.TempDir(), "flow.pcapng")
	p, err := s.Director.Start(exec.Command(programPath("director"), append([]string{"capture", "-w", file, "-c",
		s.director.config}, flags...)...))
	if err != nil {
		s.t.Fatal(err)
	}
	testkit.Within(s.t, "the capture has begun", soon, func() bool {
		info, err := os.Stat(file)
		return err == nil && info.Size() > 0
	})
	return p, file
}

// endCapture ends a capture as Ctrl-C does, and returns its output.
func (s *site) endCapture(p *lab.Process) string {
	s.t.Helper()
	if err := p.Signal(unix.SIGINT); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(soon):
		s.t.Fatal("the capture doesn't end")
	}
	if err := p.Wait(); err != nil {
		s.t.Errorf("director capture: %v: %s", err, p.Output())
	}
	return p.Output()
}

// stretch is a range of a TCP connection's bytes.
type stretch struct{ from, to uint32 }

// sentBytes reads a capture and returns, for each of its interfaces, the ranges of bytes that the client sends from the
// port. It checks that each packet is complete.
func sentBytes(t *testing.T, file string, port uint16) (byFace map[string][]stretch) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	byFace = map[string][]stretch{}
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return byFace
		}
		if err != nil {
			t.Fatal(err)
		}
		face, err := r.Interface(info.InterfaceIndex)
		if err != nil || face.LinkType != layers.LinkTypeRaw || info.CaptureLength != info.Length ||
			face.SnapLength < 65535 {
			t.Fatalf("%+v of %+v: %v", info, face, err)
		}
		inner := data
		if face.Name == "after" {
			inner = innermost(t, data)
		}
		first := gopacket.Decoder(layers.LayerTypeIPv4)
		if inner[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(inner, first, gopacket.NoCopy)
		tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if !ok || uint16(tcp.DstPort) != port {
			t.Fatalf("%s: it is no packet of the flow: %v", face.Name, p)
		}
		if n := uint32(len(tcp.Payload)); n > 0 {
			byFace[face.Name] = append(byFace[face.Name], stretch{tcp.Seq, tcp.Seq + n})
		}
	}
}

// innermost returns the packet inside a tunnel packet.
func innermost(t *testing.T, b []byte) []byte {
	t.Helper()
	proto := b[9]
	if b[0]>>4 == 6 {
		proto, b = b[6], b[40:]
	} else {
		if sum := checksum(b[:20]); sum != 0xffff {
			t.Fatalf("the outer header's checksum is wrong: %x", b[:20])
		}
		if netip.AddrFrom4([4]byte(b[12:16])).IsUnspecified() {
			t.Fatalf("there is no outer source: %x", b[:20])
		}
		b = b[20:]
	}
	switch proto {
	case 47:
		return b[4:]
	case 17:
		return b[12:] // UDP and GUE
	}
	return b
}

func checksum(b []byte) uint32 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return sum>>16 + sum&0xffff
}

// union joins adjacent ranges.
func union(all []stretch) (joined []stretch) {
	slices.SortFunc(all, func(a, b stretch) int { return int(int32(a.from - b.from)) })
	for _, s := range all {
		if last := len(joined) - 1; last >= 0 && int32(s.from-joined[last].to) <= 0 {
			if int32(s.to-joined[last].to) > 0 {
				joined[last].to = s.to
			}
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// TestCapture captures an upload through each kind of tunnel: the file has every byte of the flow, before and after the
// tunnel, and no packet of other flows. tshark understands the file.
func TestCapture(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startTunnels(`offload = "auto"`)
	for _, to := range s.tunnels() {
		if !slices.Contains([]string{"ipip-over-4", "gre-over-6", "gue-over-4"}, to.name) {
			continue
		}
		door := netip.AddrPortFrom(s.VIP, to.port)
		capture, file := s.startCapture("--vip", door.String(), "--client", s.Client.Addr.String(), "--count", "100000")
		if got := s.ask("capture", "-w", filepath.Join(t.TempDir(), "second"), "--seconds", "1"); got.code != 1 ||
			!strings.Contains(got.stderr, "another capture is running") {
			t.Errorf("a second capture: exit status %d: %s", got.code, got.stderr)
		}
		const unknown = "director: there is no VIP 198.51.100.88: did you mean 198.51.100.80?\n"
		if got := s.ask("capture", "-w", "-", "--vip", "198.51.100.88"); got.code != 1 || got.stderr != unknown {
			t.Errorf("of a VIP that is not there: exit status %d: %s, want %s", got.code, got.stderr, unknown)
		}
		const size = 1_000_000 // before and after the tunnel, less than a director keeps for a slow reader
		s.mustTakeUpload(t, to, s.VIP, to.protocols[0], size)
		said := s.endCapture(capture)
		if !strings.Contains(said, " 0 lost") {
			t.Errorf("%s: %s", to.name, said)
		}
		for face, all := range sentBytes(t, file, to.port) {
			whole := union(all)
			if len(whole) != 1 || whole[0].to-whole[0].from < size {
				t.Errorf("%s: %s the tunnel there are the bytes %v, want one stretch of %d", to.name, face, whole, size)
			}
		}
		mustTshark(t, file, to)
	}
}

// mustTshark lets tshark read a capture.
func mustTshark(t *testing.T, file string, to tunnel) {
	t.Helper()
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Log("tshark did not look at it: apt-get install tshark (or make deps)")
		return
	}
	var stderr bytes.Buffer
	cmd := exec.Command("tshark", "-n", "-r", file, "-o", "ip.check_checksum:TRUE", "-T", "fields", "-e",
		"frame.interface_name", "-e", "frame.protocols",
		"-e", "ip.checksum.status")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, &stderr)
	}
	faces := map[string]int{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		faces[fields[0]]++
		if strings.Contains(fields[2], "0") { // bad
			t.Fatalf("%s: tshark finds a wrong checksum: %s", to.name, line)
		}
		want := "raw:ip:tcp"
		if fields[0] == "after" {
			// tshark does not know GUE
			want = map[string]string{"ipip-over-4": "raw:ip:ip:tcp", "gre-over-6": "raw:ipv6:gre:ip:tcp",
				"gue-over-4": "raw:ip:udp"}[to.name]
		}
		if !strings.HasPrefix(fields[1], want) {
			t.Fatalf("%s: tshark does not understand: %s", to.name, line)
		}
	}
	if faces["before"] == 0 || faces["after"] < faces["before"] {
		t.Errorf("%s: tshark sees %v", to.name, faces)
	}
}
