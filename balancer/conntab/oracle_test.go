package conntab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vstun/encap/packet"
)

// TestOracleStates replays testdata/oracle/tcp: after each packet of a sequence, the state, its timeout, the
// realserver's counts and where the packet went, as a real kernel's IPVS had them.
func TestOracleStates(t *testing.T) {
	files := map[string]Config{
		"states.jsonl":            {Max: 1024},
		"states-sloppy.jsonl":     {Max: 1024, SloppyTCP: true},
		"states-secure.jsonl":     {Max: 1024, SecureTCP: true},
		"states-nat.jsonl":        {Max: 1024},
		"states-nat-secure.jsonl": {Max: 1024, SecureTCP: true},
	}
	if found, err := filepath.Glob("../../testdata/oracle/tcp/*"); err != nil || len(found) != len(files) {
		t.Errorf("recordings are %v (%v), and this test reads %d", found, err, len(files))
	}
	for file, cfg := range files {
		t.Run(strings.TrimSuffix(file, ".jsonl"), func(t *testing.T) {
			text, err := os.ReadFile("../../testdata/oracle/tcp/" + file)
			if err != nil {
				t.Fatal(err)
			}
			sequences := 0
			for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
				var line struct {
					Seq   []string
					After [][5]any
				}
				if sequences++; sequences == 1 {
					continue // the file's head
				}
				if err := json.Unmarshal(s.Bytes(), &line); err != nil {
					t.Fatal(err)
				}
				replaySequence(t, cfg, strings.HasPrefix(file, "states-nat"), line.Seq, line.After)
			}
			if sequences < 100 {
				t.Fatalf("only %d sequences", sequences)
			}
		})
	}
}

// replaySequence plays the packets of one connection. replies says that those of the server pass the director, too:
// they have "<" before their flags.
func replaySequence(t *testing.T, cfg Config, replies bool, seq []string, after [][5]any) {
	t.Helper()
	const dest, now = 7, 1000
	table := newSmall(cfg)
	table.Counts(dest).SetReplies(replies)
	for i, flags := range seq {
		flags, fromServer := strings.CutPrefix(flags, "<")
		dir := FromClient
		if fromServer {
			dir = FromServer
		}
		p := packet.Info{Len: 40, TCPFlags: tcpFlags(flags), Flow: packet.Flow{Proto: packet.ProtoTCP, SrcPort: 1024,
			DstPort: 80,
			Src:     netip.AddrFrom4([4]byte{192, 0, 2, 1}), Dst: netip.AddrFrom4([4]byte{198, 51, 100, 80})}}
		_, r := table.Packet(&p, dir, now)
		if r == Miss {
			_, r = table.Insert(&p, dest, 0, now)
		}
		var got [5]any
		if c, ok := table.Lookup(p.Flow, now); ok {
			got[0], got[1] = c.State.String(), c.Expires.Seconds()
		}
		got[2], got[3] = float64(table.Counts(dest).Active()), float64(table.Counts(dest).Inactive())
		switch {
		case dir == FromServer && r == Hit:
			got[4] = "client"
		case dir == FromServer && r == Refused:
			got[4] = "plain" // it belongs to no connection
		case r == Hit || r == Inserted:
			got[4] = "rs"
		case r == Refused && p.TCPFlags&packet.FlagRST == 0:
			got[4] = "rst" // see forward.Worker
		}
		if want := after[i]; got != want {
			t.Fatalf("%v, packet %d: got %v, want %v", seq, i+1, got, want)
		}
	}
}

func tcpFlags(s string) (f uint8) {
	if s == "none" {
		return 0
	}
	for _, c := range s {
		f |= map[rune]uint8{'F': packet.FlagFIN, 'S': packet.FlagSYN, 'R': packet.FlagRST, 'P': packet.FlagPSH,
			'A': packet.FlagACK, 'U': packet.FlagURG}[c]
	}
	return f
}
