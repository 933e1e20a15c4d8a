package envelope

import "testing"

// TestEnvelopes: each changed bit, each shortened datagram, another key and another protocol is refused.
func TestEnvelopes(t *testing.T) {
	key := make([]byte, MinKey)
	s := New(key, "one")
	b := s.Seal(append(s.Head(nil, 5, 2, 3, 0x0102030405060708, 9), "body"...))
	e, err := s.Open(b)
	if err != nil || e.ID != 5 || e.Kind != 2 || e.Count != 3 || e.Session != 0x0102030405060708 || e.Seq != 9 ||
		string(e.Body) != "body" {
		t.Fatalf("%v %+v", err, e)
	}
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if _, err := s.Open(b); err == nil {
			t.Errorf("bit %d of byte %d is changed, and the datagram is accepted", i%8, i/8)
		}
		b[i/8] ^= 1 << (i % 8)
	}
	for n := range b {
		if _, err := s.Open(b[:n]); err == nil {
			t.Errorf("%d bytes are accepted", n)
		}
	}
	if _, err := New(key, "two").Open(b); err != ErrForged {
		t.Errorf("of another protocol: %v", err)
	}
	key[31] = 1
	if _, err := New(key, "one").Open(b); err != ErrForged {
		t.Errorf("with another key: %v", err)
	}
}
