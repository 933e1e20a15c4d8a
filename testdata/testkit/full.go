package testkit

import (
	"os"
	"testing"
)

// Full reports whether tests have their long forms: VSTUN_FULL=1 is set.
func Full() bool { return os.Getenv("VSTUN_FULL") != "" }

// NeedFull skips a test for a reason, unless tests have their long forms.
func NeedFull(t *testing.T, why string) {
	t.Helper()
	if !Full() {
		t.Skipf("SKIPPED: %s: set VSTUN_FULL=1", why)
	}
}
