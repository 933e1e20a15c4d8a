package capture

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/forward"
	"vstun/balancer/method"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// once is a source of one packet, and a sink for all.
type once struct{ p []byte }

func (o *once) ReadBatch(bufs []packet.Buf) (int, error) {
	if o.p == nil {
		return 0, os.ErrClosed
	}
	bufs[0].SetLen(copy(bufs[0].Room(), o.p))
	o.p = nil
	return 1, nil
}

func (o *once) Send(out []egress.Outgoing) (int, error) { return len(out), nil }

// TestWrite: a packet is in the file as it came and as it went, with what the kernel fills in.
func TestWrite(t *testing.T) {
	client, vip, rs, own := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.80"),
		netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("10.0.2.2")
	b := balancer.New(conntab.New(conntab.Config{Max: 1024}), 1)
	err := b.Apply(balancer.Config{Services: []balancer.Service{{Name: "dns", VIPs: []netip.Addr{vip},
		Protocol: packet.ProtoUDP, Ports: []balancer.PortRange{{First: 53, Last: 53}},
		Scheduler:   "rr",
		Realservers: []balancer.Realserver{{Address: rs, Weight: 1, Config: method.Config{MTU: 1500}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	in := make(packet.IPv4, 40)
	packet.IPv4(in).Encode(packet.IPv4Fields{
		TotalLen: len(in), TTL: 64, Protocol: packet.ProtoUDP, Src: client.As4(), Dst: vip.As4(),
	})
	copy(in[20:], []byte{0x12, 0x34, 0, 53, 0, 20})

	shared, tap := forward.NewShared(), forward.NewCapture(forward.CaptureFilter{VIP: vip, Port: 53}, 10, 1<<20)
	if !shared.StartCapture(tap) {
		t.Fatal("somebody else looks")
	}
	o := &once{bytes.Clone(in)}
	if err := forward.NewWorker(forward.WorkerConfig{Source: o, Raw: o, Balancer: b, Shared: shared,
		Clock: func() conntab.Ticks { return 1 }}).Run(); err != nil {
		t.Fatal(err)
	}
	shared.StopCapture(tap)
	var file bytes.Buffer
	flushed := 0
	n, err := Write(t.Context(), &file, func() error { flushed++; return nil }, tap, func(a netip.Addr) netip.Addr {
		if a != rs {
			t.Errorf("asked for the way to %v", a)
		}
		return own
	})
	if err != nil || n != (Counts{Before: 1, After: 1}) || flushed < 2 {
		t.Fatalf("%+v, %v, flushed %d times", n, err, flushed)
	}

	r, err := pcapgo.NewNgReader(&file, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"before", "after"} {
		data, info, err := r.ReadPacketData()
		if err != nil {
			t.Fatal(err)
		}
		face, err := r.Interface(info.InterfaceIndex)
		if err != nil || face.Name != name || face.LinkType != layers.LinkTypeRaw || info.Timestamp.IsZero() {
			t.Errorf("%+v of %+v, %v; want %s", info, face, err, name)
		}
		if name == "before" {
			if !bytes.Equal(data, in) {
				t.Errorf("before the tunnel: %x, want %x", data, []byte(in))
			}
			continue
		}
		outer := packet.IPv4(data)
		if outer.Check() != drop.Accept || outer.Src() != own || outer.Dst() != rs || !bytes.Equal(data[20:], in) {
			t.Errorf("after the tunnel: %x", data)
		}
		if p := gopacket.NewPacket(data, layers.LayerTypeIPv4, gopacket.Default); p.Layer(layers.LayerTypeUDP) == nil ||
			p.ErrorLayer() != nil {
			t.Errorf("gopacket sees %v", p)
		}
	}
	if _, _, err := r.ReadPacketData(); !errors.Is(err, io.EOF) {
		t.Errorf("behind the packets: %v", err)
	}
}
