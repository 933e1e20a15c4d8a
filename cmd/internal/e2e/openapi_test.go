package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"vstun/testdata/testkit"
)

// describedSocket is a client of a director's control socket that holds all answers against the director's own
// description.
type describedSocket struct {
	t      *testing.T
	client http.Client
	doc    *openapi3.T
	router routers.Router
	seen   []string // operations that have been answered with status 200
}

func newDescribedSocket(t *testing.T, socket string) *describedSocket {
	t.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	}
	d := &describedSocket{t: t, client: http.Client{Timeout: 3 * soon,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}}
	resp, err := d.client.Get("http://director/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if d.doc, err = openapi3.NewLoader().LoadFromData(text); err != nil {
		t.Fatal(err)
	}
	if d.router, err = legacy.NewRouter(d.doc); err != nil {
		t.Fatal(err)
	}
	return d
}

// ask sends a request and returns the answer, which must have this status and be as described.
func (d *describedSocket) ask(status int, method, path, body string, header ...string) (string, http.Header) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, "http://director"+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	route, params, err := d.router.FindRoute(req)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	asked := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route,
		Options: &openapi3filter.Options{ExcludeRequestBody: req.Header.Get("Content-Type") != "application/json"}}
	if err := openapi3filter.ValidateRequest(d.t.Context(), asked); err != nil && status == http.StatusOK {
		d.t.Errorf("%s %s: the request: %v", method, path, err)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status {
		d.t.Errorf("%s %s: status %d, %v, want %d: %s", method, path, resp.StatusCode, err, status, answer)
	}
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	in := &openapi3filter.ResponseValidationInput{RequestValidationInput: asked, Status: resp.StatusCode,
		Header: resp.Header, Options: &openapi3filter.Options{IncludeResponseStatus: true,
			ExcludeResponseBody: kind != "application/json" && kind != "text/plain"}}
	in.SetBodyBytes(answer)
	if err := openapi3filter.ValidateResponse(d.t.Context(), in); err != nil {
		d.t.Errorf("%s %s: the answer: %v", method, path, err)
	}
	content := route.Operation.Responses.Status(resp.StatusCode).Value.Content[kind]
	if content == nil {
		d.t.Fatalf("%s %s: no content %s is described", method, path, kind)
	}
	if kind == "application/jsonl" {
		d.mustBeLines(content.Schema.Value, answer)
	}
	if status == http.StatusOK {
		d.seen = append(d.seen, route.Operation.OperationID)
	}
	return string(answer), resp.Header
}

// mustBeLines checks each line against a schema.
func (d *describedSocket) mustBeLines(schema *openapi3.Schema, text []byte) {
	d.t.Helper()
	for line := range bytes.Lines(text) {
		var v any
		if err := json.Unmarshal(line, &v); err != nil {
			d.t.Fatal(err)
		}
		if err := schema.VisitJSON(v); err != nil {
			d.t.Errorf("%s: %v", line, err)
		}
	}
}

// mustBeComplete checks that each described operation has been answered.
func (d *describedSocket) mustBeComplete() {
	d.t.Helper()
	for path, item := range d.doc.Paths.Map() {
		for method, o := range item.Operations() {
			if !slices.Contains(d.seen, o.OperationID) {
				d.t.Errorf("%s %s has not been answered", method, path)
			}
		}
	}
}

// TestOpenAPI: a running director answers each request as its description says.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	text := strings.Replace(applied, "scheduler = \"wrr\"\n", `scheduler = "sh"
persistence = { timeout = "5m" }
check = { type = "tcp", interval = "500ms" }
`, 1) + `
[[vrrp]]
name = "VI_1"
interface = "eth0"
router_id = 51
addresses = ["198.51.100.80"]
track = [{ service = "web", weight = -20 }]
[sync]
mode = "ipvs"
interface = "eth0"
[[tunnel]]
name = "site-b"
encap = "gre"
local = "10.0.2.2"
remote = "10.0.11.9"
`
	s.startWith(text)
	testkit.Within(t, "the service is up", 6*soon, func() bool {
		return s.director.balance().Services[0].Health == "up"
	})
	s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	d := newDescribedSocket(t, s.director.socket)
	const ok, refused = http.StatusOK, http.StatusUnprocessableEntity
	for _, path := range []string{"/status", "/alive", "/peers", "/openapi.yaml", "/configuration", "/connections",
		"/connections?vip=198.51.100.80:80&limit=7", "/load?realserver=10.0.11.2",
		"/load?realserver=10.0.11.2&service=web", "/explain?client=192.0.2.7:4711&vip=198.51.100.80:80",
		"/explain?client=192.0.2.7&vip=198.51.100.80:9&protocol=udp", "/capture?seconds=1", "/debug/pprof/heap",
		"/debug/pprof/profile?seconds=1", "/debug/pprof/trace?seconds=0.1"} {
		d.ask(ok, http.MethodGet, path, "")
	}
	for _, path := range []string{"/connections?state=x", "/load?realserver=x", "/explain?client=x&vip=y",
		"/capture?count=x"} {
		d.ask(refused, http.MethodGet, path, "")
	}
	d.ask(http.StatusNotFound, http.MethodGet, "/debug/pprof/nothing", "")
	for _, path := range []string{"/standby", "/active", "/reload", "/weight?realserver=10.0.11.2&weight=3",
		"/weight?realserver=10.0.11.2", "/capture/end"} {
		d.ask(ok, http.MethodPost, path, "")
	}
	d.ask(refused, http.MethodPost, "/weight?realserver=10.0.99.2&weight=3", "")

	now, head := d.ask(ok, http.MethodGet, "/configuration", "")
	next := strings.Replace(now, "\"sh\"", "\"rr\"", 1)
	kind := []string{"Content-Type", "application/toml"}
	d.ask(ok, http.MethodPut, "/configuration?dry_run&name=x.toml", next, kind...)
	d.ask(refused, http.MethodPut, "/configuration", "colour = 1\n", kind...)
	d.ask(ok, http.MethodPut, "/configuration", next, append(kind, "If-Match", head.Get("ETag"))...)
	d.ask(http.StatusPreconditionFailed, http.MethodPut, "/configuration", now, append(kind, "If-Match",
		head.Get("ETag"))...)
	const web = "/services/web/realservers/"
	object := []string{"Content-Type", "application/json"}
	_, head = d.ask(ok, http.MethodGet, web+"10.0.11.2", "")
	d.ask(ok, http.MethodPut, web+"10.0.12.2?dry_run", `{"weight": 3}`, object...)
	d.ask(ok, http.MethodPut, web+"10.0.12.2", `{"weight": 3}`, append(object, "If-Match", head.Get("ETag"))...)
	d.ask(http.StatusPreconditionFailed, http.MethodDelete, web+"10.0.12.2", "", "If-Match", head.Get("ETag"))
	d.ask(refused, http.MethodPut, web+"10.0.12.2", `{"weight": -3, "colour": "red"}`, object...)
	d.ask(refused, http.MethodPut, web+"10.0.12.256", `{}`, object...)
	d.ask(ok, http.MethodDelete, web+"10.0.12.2", "")
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		d.ask(http.StatusNotFound, method, web+"10.0.12.2", "")
	}
	d.ask(http.StatusNotFound, http.MethodPut, "/services/wbe/realservers/10.0.12.2", `{}`, object...)
	d.ask(http.StatusRequestEntityTooLarge, http.MethodPut, web+"10.0.12.2", strings.Repeat(" ", 64<<10+1), object...)
	d.ask(http.StatusRequestEntityTooLarge, http.MethodPut, "/configuration", strings.Repeat("#", 16<<20+1), kind...)
	d.mustBeComplete()
}
