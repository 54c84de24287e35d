package definition

import (
	"bytes"
	"fmt"

	"github.com/pelletier/go-toml/v2"
)

// Keys tells where the keys of a file are, so that what is wrong with their values can be reported with its line.
type Keys struct{ checker }

// Decode decodes b, the content of a file that errors call name, into the struct that into points to. A key that the struct
// does not have is an error, which sends the reader to manual. The error is a join of *Error.
func Decode(name, manual string, b []byte, into any) (*Keys, error) {
	if len(b) > maxFile {
		return nil, &Error{File: name, Msg: fmt.Sprintf("more than %d bytes: a definition is a text of a few lines", maxFile)}
	}
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(into); err != nil {
		return nil, decodeError(name, manual, err)
	}
	return &Keys{checker{file: name, lines: index(b)}}, nil
}

// Fault returns an *Error at key, such as "subnet" or "rule[1].ports", or at the nearest table above it that the file has.
func (k *Keys) Fault(key, format string, args ...any) error {
	c := checker{file: k.file, lines: k.lines}
	c.fail(key, format, args...)
	return c.errs[0]
}
