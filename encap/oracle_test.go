package encap

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"testing"

	"vstun/encap/packet"
)

// TestOracle compares Wrap with recordings of a real kernel's IPVS: of each packet that went out to a realserver with
// nothing but its TTL changed, every byte of the headers that the kernel put before it. ID and UDP source port are the
// recording's own, since they are random; the checksums that follow from them are compared.
func TestOracle(t *testing.T) {
	for file, c := range map[string]struct {
		config Config
		least  int // packets that have to be compared
	}{
		"ipip":     {Config{Kind: KindIPIP}, 100},
		"gre":      {Config{Kind: KindGRE}, 50},
		"gre-csum": {Config{Kind: KindGRE, Checksum: true}, 10},
		"gue":      {Config{Kind: KindGUE, Port: 5555}, 50},
		"gue-csum": {Config{Kind: KindGUE, Port: 5555, Checksum: true}, 10},
		"ip6ip6":   {Config{Kind: KindIPIP}, 25},
	} {
		t.Run(file, func(t *testing.T) {
			n := 0
			for _, r := range recorded(t, "../testdata/oracle/wire/"+file+".jsonl") {
				if r.name != "pmtu_disc-0" { // net.ipv4.vs.pmtu_disc=0: never DF
					n += compareOracle(t, r, c.config)
				}
			}
			t.Logf("%d packets", n)
			if n < c.least {
				t.Errorf("compared %d packets, want at least %d", n, c.least)
			}
		})
	}
}

// recording is a packet from the client and what became of it.
type recording struct {
	name    string
	in, out []byte
}

// recorded reads the steps of a file of recordings that have one packet out, to a realserver.
func recorded(t *testing.T, file string) []recording {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []recording
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<22)
	for s.Scan() {
		var c struct {
			Case  string
			Steps []struct {
				Do, From, In string
				Out          json.RawMessage
			}
		}
		if err := json.Unmarshal(s.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		for _, step := range c.Steps {
			var out []struct{ To, Hex string }
			if step.Do != "" || step.From != "client" || json.Unmarshal(step.Out, &out) != nil || len(out) != 1 ||
				out[0].To != "realserver" {
				continue
			}
			in, _ := hex.DecodeString(step.In)
			to, _ := hex.DecodeString(out[0].Hex)
			all = append(all, recording{c.Case, in, to})
		}
	}
	return all
}

// compareOracle returns how many packets it has compared: r may be none that was just wrapped.
func compareOracle(t *testing.T, r recording, c Config) int {
	want, in := r.out, bytes.Clone(r.in)
	six := want[0]>>4 == 6
	if six {
		c.Source, c.Destination = netip.AddrFrom16([16]byte(want[8:24])), netip.AddrFrom16([16]byte(want[24:40]))
		in[7]--
	} else {
		c.Source, c.Destination = netip.AddrFrom4([4]byte(want[12:16])), netip.AddrFrom4([4]byte(want[16:20]))
		in[8]--
		packet.IPv4(in).SetChecksum()
	}
	tunnel, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if len(want) < tunnel.Overhead() || !bytes.Equal(want[tunnel.Overhead():], in) {
		return 0
	}
	b := buf(in)
	tunnel.Wrap(b, 4711)
	got := b.Bytes()
	if ce := in[1]&0x03 == 0x03; ce && !six { // we copy CE; the kernel sends it on as ECT(0)
		got[1] &^= 0x01
	} else if six && in[1]&0x30 == 0x30 {
		got[1] &^= 0x10
	}
	if c.Kind.UDP() {
		if c.Checksum && packet.Fold(packet.Sum(got[20:], packet.IPv4(got).PseudoSum(len(got)-20))) != 0xffff {
			t.Errorf("%s: wrong UDP checksum", r.name)
		}
		copy(got[20:22], want[20:22])
		tunnel.Seal(packet.Segment{Head: got})
	}
	if !six { // the kernel's part on a raw socket
		copy(got[4:6], want[4:6])
		packet.IPv4(got).SetChecksum()
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: outer header is\n%x, want\n%x", r.name, got[:tunnel.Overhead()], want[:tunnel.Overhead()])
	}
	return 1
}
