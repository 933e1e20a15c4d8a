package director

import (
	_ "embed"

	"vstun/cmd/internal/config"
)

// description is the OpenAPI description of the control socket.
//
//go:embed openapi.yaml
var description []byte

// openAPI answers GET /openapi.yaml.
func openAPI() (text []byte, etag string, err error) {
	return description, `"` + config.Digest(description) + `"`, nil
}
