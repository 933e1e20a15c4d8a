package doctor

import (
	"slices"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// TestDirectorFastPath: a fast path that is off, or not for all packets, is a hint. One that is not wanted is none. A
// restart is the fix only if the fast path needs one.
func TestDirectorFastPath(t *testing.T) {
	for name, c := range map[string]struct {
		st     api.FastPath
		off    bool
		want   string
		causes []string
		fix    string
	}{
		"on": {st: api.FastPath{On: true, Devices: []string{"eth0"}}},
		"off": {st: api.FastPath{Reason: "no CAP_BPF"}, want: "the fast path is off",
			causes: []string{"no CAP_BPF"}, fix: "systemctl restart vstun-director"},
		"off for now": {st: api.FastPath{Reason: "IPsec", Resumes: true}, want: "the fast path is off",
			causes: []string{"IPsec"}},
		"unwanted": {st: api.FastPath{Reason: `fast_path is "off"`}, off: true},
		"not everywhere": {st: api.FastPath{On: true, Devices: []string{"eth0"}, Reason: "eth1: one; two"},
			want: "some packets do not take the fast path", causes: []string{"eth1: one", "two"}},
	} {
		res := result{}
		res.directorFastPath(&config.Director{FastPath: config.FastPath{Off: c.off}}, &c.st)
		if c.want == "" {
			if len(res.findings) > 0 || len(res.fines) != 1 {
				t.Errorf("%s: %+v", name, res)
			}
			continue
		}
		if len(res.findings) != 1 || res.findings[0].What != c.want || res.findings[0].Severity != Hint ||
			!slices.Equal(res.findings[0].Causes, c.causes) || res.findings[0].Fix != c.fix {
			t.Errorf("%s: %+v", name, res.findings)
		}
	}
}
