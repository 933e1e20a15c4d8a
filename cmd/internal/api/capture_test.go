package api

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestParseCapture: every key, the defaults, and invalid values.
func TestParseCapture(t *testing.T) {
	q, _ := url.ParseQuery(
		"client=192.0.2.7:4711&vip=[2001:db8::80]&realserver=10.0.11.2&count=5&seconds=2&megabytes=3")
	c, err := ParseCapture(q)
	if err != nil || c.Client.String() != "192.0.2.7" || c.ClientPort != 4711 || c.VIP.String() != "2001:db8::80" ||
		c.Port != 0 || c.Realserver.Addr().String() != "10.0.11.2" ||
		c.Packets != 5 || c.Time != 2*time.Second || c.Bytes != 3<<20 {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := ParseCapture(url.Values{}); err != nil || c.Packets != 1000 || c.Time != time.Minute ||
		c.Bytes != 64<<20 || c.Client.IsValid() {
		t.Errorf("without anything: %+v, %v", c, err)
	}
	for _, wrong := range []string{"client=me", "vip=:80", "realserver=web1", "count=0", "count=x", "seconds=100000",
		"megabytes=-1", "colour=red", "count=1&count=2"} {
		q, _ := url.ParseQuery(wrong)
		key, _, _ := strings.Cut(wrong, "=")
		if c, err := ParseCapture(q); err == nil || !strings.Contains(err.Error(), "--"+key) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v", wrong, c, err)
		}
	}
}
