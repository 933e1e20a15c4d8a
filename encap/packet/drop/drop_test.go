package drop

import "testing"

// Every reason has a name of its own, and a program that counts it.
func TestReasons(t *testing.T) {
	seen := map[string]Reason{"unknown": NumReasons}
	for r := Accept; r < NumReasons; r++ {
		name := r.String()
		if before, ok := seen[name]; ok || name == "" {
			t.Errorf("reason %d is called %q, as reason %d", r, name, before)
		}
		seen[name] = r
		if counted := r.Director() || r.Realserver() || r.Tunnel(); counted != (r != Accept) {
			t.Errorf("%v: counted by a program: %v", r, counted)
		}
	}
	if NumReasons.String() != "unknown" || NumReasons.Director() || NumReasons.Realserver() {
		t.Error("NumReasons is a reason")
	}
}
