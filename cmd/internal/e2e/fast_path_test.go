package e2e

import (
	"fmt"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestFastPath: by every method, an upload passes the director in the kernel, and counts as if workers had forwarded
// it. Its end takes the connection out.
func TestFastPath(t *testing.T) { byMethod(t, testFastPath) }

func testFastPath(t *testing.T, m method, ipv6 bool) {
	s := newMethodSite(t, m, ipv6, 1, nil)
	s.startAgents("")
	s.startDirector("", service{"tcp", "80", "wrr", []int{1}})
	s.acceptUploads(s.Webs[0], 80)
	conn := s.dial("tcp", 80)
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first brings it to the kernel
		if answer, err := put(conn, bulk()/5); err != nil || answer != fmt.Sprintf("%d bytes, all as they should be",
			bulk()/5) {
			t.Fatalf("%q, %v", answer, err)
		}
	}
	st := s.director.balance()
	fast, total := st.FastPath, st.Services[0].Realservers[0].Forwarded
	if !fast.On || fast.Connections != 1 || fast.Promoted != 1 {
		t.Errorf("%+v", fast)
	}
	if payload := uint64(2 * bulk() / 5); total.Bytes < payload || total.Bytes > payload*11/10 {
		t.Errorf("the realserver got %d bytes, want some more than %d", total.Bytes, payload)
	}
	if fast.Forwarded.Bytes < total.Bytes/2 {
		t.Errorf("the kernel has forwarded %d of %d bytes", fast.Forwarded.Bytes, total.Bytes)
	}
	if len(st.Drops) != 0 {
		t.Errorf("the director dropped %v", st.Drops)
	}
	_ = conn.Close()
	testkit.Eventually(t, "the connection has left the kernel", func() bool {
		return s.director.balance().FastPath.Connections == 0
	})
}
