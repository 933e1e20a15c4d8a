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
	size := bulk() / 10
	upload := func() {
		t.Helper()
		answer, err := put(conn, size)
		if want := fmt.Sprintf("%d bytes, all as they should be", size); err != nil || answer != want {
			t.Fatalf("%q, %v", answer, err)
		}
	}
	uploads := 0
	testkit.Eventually(t, "the kernel has the connection", func() bool {
		upload()
		uploads++
		return s.director.balance().FastPath.Connections == 1
	})
	before := s.director.balance().FastPath.Taken.Bytes
	upload()
	st := s.director.balance()
	fast, total := st.FastPath, st.Services[0].Realservers[0].Forwarded
	if !fast.On || fast.Promoted != 1 || len(fast.Devices) == 0 {
		t.Errorf("%+v", fast)
	}
	if payload := uint64((uploads + 1) * size); total.Bytes < payload || total.Bytes > payload*11/10 {
		t.Errorf("the realserver got %d bytes, want some more than %d", total.Bytes, payload)
	}
	if n := fast.Taken.Bytes - before; n < uint64(size) {
		t.Errorf("the kernel has forwarded %d bytes of the second upload, which has %d", n, size)
	}
	if len(st.Drops) != 0 {
		t.Errorf("the director dropped %v", st.Drops)
	}
	_ = conn.Close()
	testkit.Eventually(t, "the connection has left the kernel", func() bool {
		return s.director.balance().FastPath.Connections == 0
	})
}
