package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// worker sends packets as the director's worker does, and keeps what leaves.
type worker struct {
	out   egress.Output
	tally stats.Tally
	sent  [][]byte
}

func newWorker() *worker {
	w := &worker{}
	w.out.Init(egress.Config{Raw: w, UDPPorts: []uint16{sourcePort}, Link: w, TUN: tunWriter{w}, IDs: egress.NewIDs(1),
		Tally: &w.tally, TooBig: func() {}})
	return w
}

const sourcePort = 41000

func (w *worker) Send(out []egress.Outgoing) (int, error) {
	for _, o := range out {
		w.sent = append(w.sent, append(bytes.Clone(o.Head), o.Body...))
	}
	return len(out), nil
}

// tunWriter is a TUN device whose kernel forwards the packets.
type tunWriter struct{ *worker }

func (w tunWriter) Write(bufs []*packet.Buf) (int, error) {
	for _, b := range bufs {
		p := bytes.Clone(b.Bytes())
		packet.LowerTTL(p)
		w.sent = append(w.sent, p)
	}
	return len(bufs), nil
}

// forward returns the packets that the worker sends for the packet b. The kernel lowers the TTL before. vip is a
// reply's VIP. It returns nil if the worker drops the packet.
func (w *worker) forward(m method.Method, b []byte, vip netip.AddrPort, mtu int) [][]byte {
	w.sent = nil
	buf := &packet.NewBufs(1)[0]
	buf.SetLen(copy(buf.Room(), b))
	var p packet.Info
	if !packet.LowerTTL(buf.Bytes()) || p.Parse(buf.Bytes()) != drop.Accept {
		return nil
	}
	buf.SetLen(p.Len)
	if vip.IsValid() {
		m.(method.Returner).Back(buf, &p, vip)
		packet.RaiseTTL(buf.Bytes())
		w.out.AddWhole(buf, &egress.Hop{Kind: egress.TUN})
		w.out.Flush()
		return w.sent
	}
	hop := m.Out(buf, &p, sourcePort)
	if m.Kind() == method.TUN {
		w.out.AddWrapped(buf, &p, &hop, mtu)
	} else {
		w.out.Add(buf.Bytes(), &hop)
	}
	w.out.Flush()
	return w.sent
}

// finishOuter does what the kernel does with a packet of a raw socket: it sets an IPv4 header's checksum. The ID is
// volatile: here it is that of like.
func finishOuter(b, like []byte) {
	if packet.Version(b) == 4 && len(like) >= packet.IPv4HeaderLen {
		h := packet.IPv4(b)
		h.SetID(packet.IPv4(like).ID())
		h.SetChecksum()
	}
}

// methodOf returns the worker's method for a tunnel.
func methodOf(t testing.TB, c encap.Config) method.Method {
	t.Helper()
	m, err := method.New(c.Destination, method.Config{Kind: method.TUN, Encap: c.Kind, EncapPort: c.Port, Key: c.Key,
		HasKey: c.HasKey, Source: c.Source, MTU: 1500})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
