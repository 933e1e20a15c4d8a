package director

import (
	"log/slog"
	"testing"
	"time"

	"vstun/cmd/internal/config"
	"vstun/testdata/testkit"
)

// TestUsualDescriptors: a queue takes no more descriptors than the command check expects.
func TestUsualDescriptors(t *testing.T) {
	const few, many = 1, 4
	used, expected := map[int]int{}, map[int]int{}
	testkit.InNamespace(t, func() {
		for _, queues := range []int{few, many} {
			cfg := &config.Director{TUN: "vs0", Queues: queues, Connections: config.Connections{Max: 1024}}
			before, p := testkit.Descriptors(t, ""), dataPlane{start: time.Now()}
			err := p.open(cfg, nil, slog.New(slog.DiscardHandler))
			used[queues], expected[queues] = testkit.Descriptors(t, "")-before, usualDescriptors(cfg)
			if closed := p.close(); err != nil || closed != nil {
				t.Fatal(err, closed)
			}
		}
	})
	if is, want := used[many]-used[few], expected[many]-expected[few]; is > want {
		t.Errorf("%d more queues take %d descriptors, expected are %d", many-few, is, want)
	}
}
