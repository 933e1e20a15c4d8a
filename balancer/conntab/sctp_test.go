package conntab

import (
	"testing"
	"time"

	"vstun/encap/packet"
)

// TestSCTP follows associations as a one-way director sees them: chunk, state, timeout, active.
func TestSCTP(t *testing.T) {
	type step struct {
		chunk  uint8
		state  string
		expiry time.Duration
		active int
	}
	const s = time.Second
	for name, steps := range map[string][]step{
		"whole life": {{packet.ChunkInit, "INIT1", 4 * s, 0}, {packet.ChunkCookieEcho, "ESTABLISHED", 900 * s, 1},
			{packet.ChunkData, "ESTABLISHED", 900 * s, 1},
			{3, "ESTABLISHED", 900 * s, 1}, {packet.ChunkShutdown, "S-RECEIVED", 61 * s, 0},
			{packet.ChunkShutdownComplete, "CLOSED", 61 * s, 0}},
		"init twice": {{packet.ChunkInit, "INIT1", 4 * s, 0}, {packet.ChunkInit, "INIT", 61 * s, 0}},
		"abort": {{packet.ChunkInit, "INIT1", 4 * s, 0}, {packet.ChunkCookieEcho, "ESTABLISHED",
			900 * s, 1}, {packet.ChunkAbort, "CLOSED", 61 * s, 0}},
		"reuse": {{packet.ChunkInit, "INIT1", 4 * s, 0}, {packet.ChunkAbort, "CLOSED", 61 * s, 0},
			{packet.ChunkInit, "INIT1", 4 * s, 0}},
		"unknown chunk is data": {{packet.ChunkInit, "INIT1", 4 * s, 0}, {200, "INIT1", 4 * s, 0}},
	} {
		table := newSmall(Config{})
		for i, st := range steps {
			p := tcp(1, 1, 0)
			p.Flow.Proto, p.SCTPChunk = packet.ProtoSCTP, st.chunk
			if _, r := table.Packet(&p, FromClient, 0); r == Miss {
				table.Insert(&p, 3, 0, 0)
			}
			c, ok := table.Lookup(p.Flow, 0)
			if !ok || c.State.String() != st.state || c.Expires != st.expiry || table.Counts(3).Active() != st.active ||
				table.Len() != 1 {
				t.Errorf("%s, step %d: %+v %v, %d active, want %+v", name, i, c, ok, table.Counts(3).Active(), st)
			}
		}
	}
	table := newSmall(Config{})
	p := tcp(1, 1, 0)
	p.Flow.Proto, p.SCTPChunk = packet.ProtoSCTP, packet.ChunkData
	if _, r := table.Packet(&p, FromClient, 0); r != Refused {
		t.Errorf("DATA of no association: result %d", r)
	}
}
