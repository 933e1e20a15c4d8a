package page

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/page/pagetest"
)

// waitText waits until the first element of a selector has the text.
func waitText(tab *pagetest.Tab, selector, want string) {
	tab.Wait(fmt.Sprintf("%s shows %q", selector, want),
		fmt.Sprintf("(document.querySelector(%q)?.innerText ?? '').replace(/\\s+/g, ' ').trim() === %q", selector,
			want))
}

// TestShows: the page shows the whole status, and its changes a moment later, without being loaded again.
func TestShows(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	url, _ := serve(t, New(src.status))
	tab := open(t, url, pagetest.Look{})
	tab.Do("window.stays = true")
	for selector, want := range map[string]string{
		"#tally":              "3 services, 8 realservers",
		"#about":              "v1.4.0 · up 3 d · pid 4711 · vs0, 4 queues, csum tso uso",
		"#tile-table .value":  "48,213 in the table",
		"#tile-table .side":   "4.8 % of 1.00 M, 312 half-open",
		"#tile-refused .side": "1,254 since the start",
		"tbody:nth-of-type(1) .addresses": "tcp 198.51.100.80:80,443, announced on eth0, eth1 " +
			"tcp [2001:db8:100::80]:80,443",
		"tbody:nth-of-type(1) .service .health": "△ 3 of 4 up",
		"tbody:nth-of-type(2) .service .how":    "rr ops",
		"tbody:nth-of-type(3) .service .how":    "wlc persistent 300 netmask 24",
		"tbody:nth-of-type(3) .service .health": "▲ sorry server 0 of 2 up, weight 0, quorum 2",
		"tbody:nth-of-type(2) .realserver":      "fd00:0:11::2 Tunnel,ipip 1 ○ unchecked 41 160 0 0 0",
		"#notices": "mail: its sorry server answers (weight 0 up, quorum 2) Show 3 " +
			"realservers of 8 down, in 2 services Show 1 VIP used by another host, too: see Conflicts",
		"#drops tbody":     "no_service 0 1,234 send_error 0 3 too_big 0 17",
		"#conflicts tbody": "198.51.100.80 eth1 02:00:00:00:00:09 3 2 h ago",
		"#leaving tbody":   "10.0.15.2 web Masq 12 7",
	} {
		// What only the style shows, as the mark before a badge, is no text.
		waitText(tab, selector, strings.TrimSpace(strings.NewReplacer("△ ", "", "▲ ", "", "○ ", "", "● ",
			"").Replace(want)))
	}
	if title := pagetest.Eval[string](tab, "document.title"); !strings.Contains(title, "3 down") {
		t.Errorf("the title is %q", title)
	}
	if got := tab.Text("tbody:nth-of-type(1) .realserver:nth-of-type(4) .health"); !strings.HasPrefix(got,
		"down 2 h connect to 198.51.100.80:80: connection refused, ") || !strings.HasSuffix(got, " s ago") {
		t.Errorf("the health of 10.0.13.2 reads %q", got)
	}
	tab.Click("input[value=totals]")
	waitText(tab, "tbody:nth-of-type(1) .realserver .connections", "246,912")
	for i, r := range src.status().Services[0].Realservers {
		row := fmt.Sprintf("tbody:nth-of-type(1) .realserver:nth-of-type(%d)", i+2)
		if c, p := number(t, tab.Text(row+" .connections")), number(t, tab.Text(row+" .packets")); c != r.Connections ||
			p != r.Forwarded.Packets {
			t.Errorf("%s has %d connections and %d packets, the page shows %d and %d", r.Address, r.Connections,
				r.Forwarded.Packets, c, p)
		}
	}

	src.change(func(st *api.DirectorStatus) {
		web := &st.Services[0]
		r := &web.Realservers[2]
		r.Health, r.Effective, r.Active, r.Connections = "up", r.Weight, 7, 1_000_000
		r.Check = &api.Check{Type: "http", Via: "tunnel", Reason: "HTTP 204", Duration: 0.012, Since: 1}
		two := 2
		web.Realservers[3].Configured, st.Services[1].Realservers[0].Configured = &two, &two
		st.Leaving, st.Announced = api.Leaving{}, st.Announced[:1]
		st.Drops["table_full"] = 5
		st.Services[2].Sorry, st.Services[2].Health = false, "up"
	})
	waitText(tab, "tbody:nth-of-type(1) .service .health", "4 of 4 up")
	waitText(tab, "tbody:nth-of-type(1) .realserver:nth-of-type(4) .active", "7")
	waitText(tab, "tbody:nth-of-type(1) .realserver:nth-of-type(4) .connections", "1,000,000")
	tab.Wait("the reason is the last check's", "document.querySelector('tbody .realserver:nth-of-type(4) "+
		".reason').innerText.startsWith('HTTP 204 in 12')")
	tab.Wait("an operator's weight stands with the configured one", "document.querySelector('tbody "+
		".realserver:nth-of-type(5) .reason').innerText.endsWith(' ago; weight 0 is an operator\\'s, 2 is configured')")
	waitText(tab, "tbody:nth-of-type(2) .realserver .reason", "weight 1 is an operator's, 2 is configured")
	waitText(tab, "#notices", "2 realservers of 8 down, in 1 service Show")
	tab.Wait("the VIP is not announced any more", "document.getElementById('conflicts').hidden && "+
		"!document.querySelector('tbody .addresses').innerText.includes('announced')")
	tab.Wait("no realserver is leaving any more", "document.getElementById('leaving').hidden")
	tab.Wait("another reason is there", "document.getElementById('drops').innerText.includes('table_full')")

	src.change(func(st *api.DirectorStatus) { // a reload
		st.Services = append(st.Services[:1:1], api.Service{Name: "empty", VIPs: []string{"198.51.100.9"},
			Protocol: "sctp", Ports: []string{"0"}, Scheduler: "sh"})
	})
	tab.Wait("the services are others", "[...document.querySelectorAll('.service .title')].map(e => "+
		"e.innerText).join() === 'web,empty'")
	waitText(tab, "tbody:nth-of-type(2) .service .health", "no realserver")
	if !pagetest.Eval[bool](tab, "window.stays === true") {
		t.Error("the page was loaded again")
	}
}

// TestHistoryIsThere: a page that has just been opened shows the charts of the time before.
func TestHistoryIsThere(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	p := New(src.status)
	for at := time.Now().Add(-20 * stepTime); time.Since(at) > 0; at = at.Add(stepTime) {
		src.change(func(st *api.DirectorStatus) { move(st, 100) })
		p.take(at)
	}
	url, _ := serve(t, p)
	tab := open(t, url, pagetest.Look{})
	for _, svg := range []string{"#tile-packets .spark", "#services tbody .spark"} {
		tab.Wait(svg+" has its points", fmt.Sprintf("(document.querySelector('%s .line').getAttribute('d') ?? "+
			"'').split('L').length >= 19", svg))
	}
	label := pagetest.Eval[string](tab, "document.querySelector('#services tbody .spark').getAttribute('aria-label')")
	if !strings.HasPrefix(label, "web: packets a second over the last 10 minutes: now ") || !strings.HasSuffix(label,
		", at most 2,860") {
		t.Errorf("the chart of the service is for those who don't see it %q", label)
	}
	tab.Do("document.getElementById('charted').value = 0; document.getElementById('charted').dispatchEvent(new " +
		"Event('change'))")
	tab.Wait("the chart is another", "/^web: new connections a second over the last 10 minutes: now .*, at most "+
		"260$/.test(document.querySelector('#services tbody .spark').getAttribute('aria-label'))")
}

// TestThousandRealservers finds the realservers that are down among 1,000, shows all, and redraws only the changes.
func TestThousandRealservers(t *testing.T) {
	t.Parallel()
	src := &source{st: large(100, 10)}
	url, _ := serve(t, New(src.status))
	tab := open(t, url, pagetest.Look{})
	const rows = "[...document.querySelectorAll('.realserver')].filter(e => e.checkVisibility()).length"
	if n := pagetest.Eval[int](tab, rows); n != 0 {
		t.Errorf("%d realservers are shown before a service is opened", n)
	}
	tab.Do("document.dispatchEvent(new KeyboardEvent('keydown', { key: '/', cancelable: true }))")
	tab.Type("10.0.42.7 wlc")
	tab.Wait("the realserver is found", rows+" === 1 && document.querySelectorAll('.service').length === 100")
	if got := tab.Texts(".realserver .name"); !slices.Equal(got, []string{"10.0.42.7"}) {
		t.Errorf("found: %v", got)
	}
	if hash := pagetest.Eval[string](tab, "location.hash"); hash != "#find=10.0.42.7+wlc" {
		t.Errorf("the address ends with %q", hash)
	}
	tab.Type("\u001b") // Escape
	tab.Wait("everything is back", "[...document.querySelectorAll('.service')].filter(e => "+
		"!e.parentNode.hidden).length === 100")
	tab.Click("#notices button")
	tab.Wait("what is down is shown", rows+" === 10")
	if got := tab.Texts(".realserver .badge"); len(got) != 10 || slices.ContainsFunc(got,
		func(s string) bool { return !strings.HasPrefix(s, "down") }) {
		t.Errorf("trouble is %q", got)
	}
	tab.Do("document.getElementById('trouble').click(); document.getElementById('fold').click()")
	tab.Wait("all are shown", "document.querySelectorAll('.realserver').length === 1000")

	tab.Do(`window.touched = new Set();
		new MutationObserver(all => all.forEach(m => {
			const row = (m.target.closest ? m.target : m.target.parentNode).closest?.('tr');
			if (row && !m.target.closest?.('.reason, .spark'))
				touched.add(row.querySelector('.title, .realserver .name').textContent);
		})).observe(document.getElementById('services'), { subtree: true, childList: true, attributes: true })`)
	src.change(func(st *api.DirectorStatus) {
		st.Services[17].Realservers[3].Active = 4711
		st.Services[17].Realservers[5].Health = "down"
	})
	// off the screen
	tab.Wait("the figure is there", "document.querySelector('tbody:nth-of-type(18) .realserver:nth-of-type(5) "+
		".active').textContent === '4,711'")
	tab.Wait("the other one is down", "document.querySelector('tbody:nth-of-type(18) .realserver:nth-of-type(7) "+
		".badge').textContent.includes('down')")
	touched := pagetest.Eval[[]string](tab, "[...touched].sort()")
	if want := []string{"10.0.17.4", "10.0.17.6", "service-0017"}; !slices.Equal(touched, want) {
		t.Errorf("drawn again: %q, want %q", touched, want)
	}
}

// TestHostileNames: the page shows names as text, even if they contain markup.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	evil := []string{`<img src=x onerror="window.evil=1">`, `"><script>window.evil=1</script>`,
		`' onmouseover='window.evil=1`, "</template></table><h1>evil</h1>", "{{7*7}} ${7*7}", "<!--", "\u202egnp.exe",
		"a\x00b\nc", strings.Repeat("W", 500)}
	st := small()
	st.Services, st.Leaving.List, st.Drops = nil, nil, map[string]uint64{`<b>drop</b>`: 1}
	for _, name := range evil {
		st.Services = append(st.Services, api.Service{Name: name, VIPs: []string{"198.51.100.80"}, Protocol: "tcp",
			Ports: []string{"80"}, Scheduler: name, Health: "down",
			Realservers: []api.Realserver{{Address: "10.0.11.2", Encap: name, Health: "down",
				Check: &api.Check{Type: name, Reason: name}}}})
		st.Leaving.List = append(st.Leaving.List, api.LeavingRealserver{Service: name, Address: name})
	}
	st.Leaving.Realservers, st.SendError, st.Version, st.TUN = len(evil), evil[0], evil[1], evil[0]
	src := &source{st: st}
	url, _ := serve(t, New(src.status))
	tab := open(t, url, pagetest.Look{})
	titles := pagetest.Eval[[]string](tab, "[...document.querySelectorAll('.service .title')].map(e => e.textContent)")
	if want := evil; !slices.Equal(titles, want) {
		t.Errorf("the names are\n%q\nwant\n%q", titles, want)
	}
	if n := pagetest.Eval[int](tab, "document.querySelectorAll('main img, script:not([src]), main b:not(.tile b), "+
		"main h1, [onmouseover], [onerror]').length"); n != 0 {
		t.Errorf("%d elements were made of names", n)
	}
	tab.Do("document.querySelectorAll('.service, .reason').forEach(e => e.dispatchEvent(new MouseEvent('mouseover', " +
		"{bubbles: true})))")
	if pagetest.Eval[bool](tab, "'evil' in window") {
		t.Error("a name was run as a script")
	}
	if pagetest.Eval[bool](tab, "document.documentElement.scrollWidth > innerWidth") {
		t.Error("a long name makes the page wider than the window")
	}
}

// TestServerGone: when the director has gone, the page shows at once that its figures are old. It goes on when the
// director is back.
func TestServerGone(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	url, stop := serve(t, New(src.status))
	tab := open(t, url+"#find=web", pagetest.Look{})
	waitText(tab, "#link", "Live")
	tab.Tolerate()
	stop()
	tab.Wait("the page is stale", "document.body.dataset.state === 'stale'")
	if got := tab.Text("#stale"); !strings.HasPrefix(got, "No news from the director since ") || !strings.Contains(got,
		"old figures") {
		t.Errorf("the page says %q", got)
	}
	if got := tab.Text("#link"); got != "Stale" {
		t.Errorf("the connection is %q", got)
	}
	tab.Picture("stale")
	// Another run of the director, at the same address.
	st := small()
	st.Services[0].Realservers = st.Services[0].Realservers[:2]
	next := New((&source{st: st}).status)
	var listener net.Listener
	var err error
	for end := time.Now().Add(pagetest.Patience); ; {
		if listener, err = net.Listen("tcp", strings.Trim(strings.TrimPrefix(url, "http://"), "/")); err == nil ||
			time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: next.Handler()}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = next.Run(ctx) })
	running.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Close()
		cancel()
		running.Wait()
	})
	tab.Wait("the page is live again", "document.body.dataset.state === 'live' && "+
		"document.getElementById('stale').hidden")
	waitText(tab, "tbody:nth-of-type(1) .service .health", "2 of 2 up")
	if got := tab.Texts(".service .title"); !slices.Equal(got, []string{"web"}) {
		t.Errorf("what is searched for was forgotten: %q are shown", got)
	}
}

// TestLooks measures the page on screens of all sizes, in the light and in the dark: nothing is wider than the screen,
// and text has contrast.
func TestLooks(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	src.change(func(st *api.DirectorStatus) { // as long as figures get
		r := &st.Services[0].Realservers[1]
		most := 65534
		r.Weight, r.Configured, r.Effective, r.Active, r.Inactive = 65535, &most, 65535, 999_000, 99_999_999
		r.Connections, r.Forwarded = 9_500_000, api.Traffic{Packets: 1 << 60, Bytes: 1 << 60}
		st.In, st.Out = r.Forwarded, r.Forwarded
		st.Drops["no_connection"] = 1 << 60
		st.Connections = api.Connections{Count: 134_217_728, Max: 134_217_728, HalfOpen: 33_554_432,
			HalfOpenMax: 33_554_432}
	})
	url, _ := serve(t, New(src.status))
	for name, look := range map[string]pagetest.Look{
		"phone": {Width: 360, Height: 740, Phone: true}, "phone in the dark": {Width: 390, Height: 844, Phone: true,
			Dark: true},
		"tablet": {Width: 900, Height: 1100}, "notebook": {Width: 1217, Height: 800},
		"desk": {Width: 1500, Height: 1000, Dark: true},
	} {
		tab := open(t, url, look)
		tab.Do("document.querySelector('input[value=totals]').click()")
		tab.Picture("long-" + name)
		if n := pagetest.Eval[int](tab, "document.documentElement.scrollWidth"); n > look.Width {
			t.Errorf("%s: the page is %d wide", name, n)
		}
		if out := pagetest.Eval[[]string](tab, outside); len(out) > 0 {
			t.Errorf("%s: cut off: %q", name, out)
		}
		if faint := pagetest.Eval[[]string](tab, faintText); len(faint) > 0 {
			t.Errorf("%s: text with a contrast below 4.5: %q", name, faint)
		}
		ground := pagetest.Eval[int](tab, "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
		if dark := ground < 64; dark != look.Dark {
			t.Errorf("%s: the ground's red is %d", name, ground)
		}
	}
}

// outside lists elements that reach beyond the screen, and cells that are too small for their figures.
const outside = `[...document.querySelectorAll('#services tr:not([hidden]) > *, .tile b, .panels td')]
	.filter(e => e.checkVisibility() && !e.closest('thead') && (e.getBoundingClientRect().right > innerWidth ||
	e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && getComputedStyle(e).display !== 'inline'))
	.map(e => e.className + ': ' + e.innerText)`

// faintText lists text whose contrast to its background is below WCAG's 4.5.
const faintText = `(() => {
	const rgb = c => { const m = c.match(/[\d.]+/g).map(Number); return { c: m.slice(0, 3), a: m[3] ?? 1 }; };
	const luminance = c => {
		const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
		return .2126 * r + .7152 * g + .0722 * b;
	};
	const behind = e => {
		for (; e; e = e.parentElement) {
			const b = rgb(getComputedStyle(e).backgroundColor);
			if (b.a === 1) return b.c;
		}
		return [255, 255, 255];
	};
	const all = new Set();
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	while (walk.nextNode()) {
		const e = walk.currentNode.parentElement;
		if (!walk.currentNode.data.trim() || !e.checkVisibility() || e.closest('template, noscript')) continue;
		const [a, b] = [luminance(rgb(getComputedStyle(e).color).c), luminance(behind(e))];
		const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (contrast < 4.5) all.add(e.className + ' ' + walk.currentNode.data.trim() + ' ' + contrast.toFixed(2));
	}
	return [...all];
})()`

// TestKeyboard uses the page without a mouse. Every control has a name for screen readers.
func TestKeyboard(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	url, _ := serve(t, New(src.status))
	tab := open(t, url, pagetest.Look{})
	const focus = "document.activeElement"
	tab.Do("document.querySelector('#fold').focus()")
	tab.Type("\t")
	if got := tab.Text("tbody:focus-within .title"); got != "web" {
		t.Fatalf("the focus is at %q, want the first service", got)
	}
	for _, open := range []bool{false, true} {
		tab.Type("\r")
		tab.Wait("the service opens or closes", fmt.Sprintf("%s.getAttribute('aria-expanded') === '%v' && "+
			"(document.querySelectorAll('tbody')[0].rows.length === 5) === %v", focus, open, open))
	}
	tab.Wait("the charts are drawn", "[...document.querySelectorAll('.spark')].every(e => !e.checkVisibility() || "+
		"e.getAttribute('aria-label'))")
	nameless := pagetest.Eval[[]string](tab, `[...document.querySelectorAll('button, input, select, a, [role=img]')]
		.filter(e => e.checkVisibility() &&
		!(e.innerText?.trim() || e.getAttribute('aria-label') || e.labels?.[0]?.innerText.trim()))
		.map(e => e.outerHTML)`)
	if len(nameless) > 0 {
		t.Errorf("without a name: %q", nameless)
	}
	roles := pagetest.Eval[[]string](tab, "[...document.querySelectorAll('#services, #services thead, #services "+
		"tbody, #services tr, #services th, #services td')].filter(e => !e.getAttribute('role')).map(e => e.outerHTML)")
	if len(roles) > 0 {
		t.Errorf("the table is none any more where its style is another: %q", roles)
	}
}
