package bpf

import "testing"

func TestOlderThan(t *testing.T) {
	for release, want := range map[string]bool{"5.15.0-113-generic": true, "4.19": true, "5.19.0": false,
		"6.1.0-13-amd64": false, "5.20-rc1": false, "": true} {
		if got := olderThan(release, 5, 19); got != want {
			t.Errorf("%q: %v, want %v", release, got, want)
		}
	}
}
