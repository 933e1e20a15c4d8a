package doctor

import (
	"strings"
	"testing"

	"vstun/cmd/internal/api"
)

// TestPeersHeard: peers are called fine only if a packet of one has been accepted.
func TestPeersHeard(t *testing.T) {
	for received, want := range map[uint64]string{0: "none has been heard", 7: "packets of its peers are accepted"} {
		res := &result{check: "vrrp"}
		res.vrrp(&api.DirectorStatus{VRRP: []api.VRRP{{Name: "VI_1", Role: "master", Received: received}}}, nil, nil)
		if len(res.findings) > 0 || len(res.fines) != 1 || !strings.Contains(res.fines[0].Text, want) {
			t.Errorf("%d packets: %+v, want %q", received, res, want)
		}
	}
}
