package control

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
)

// summaryHeader is the trailer in which the summary of a feed comes.
const summaryHeader = "Vstun-Summary"

// Feed serves GET path with what a function writes that open returns for a query: it writes until ctx ends or the
// client goes, flushes when the client shall see what there is, and returns a summary, which comes behind all as JSON.
// An error of open means that the query is refused.
func (s *Server) Feed(path, contentType string, open func(url.Values) (func(ctx context.Context, w io.Writer,
	flush func() error) (any, error), error)) {
	s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		write, err := open(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Trailer", summaryHeader)
		summary, err := write(r.Context(), w, http.NewResponseController(w).Flush)
		if err != nil {
			panic(http.ErrAbortHandler) // else the answer would look whole, should anybody still read it
		}
		if text, err := json.Marshal(summary); err == nil {
			w.Header().Set(summaryHeader, string(text))
		}
	})
}
