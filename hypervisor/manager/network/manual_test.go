package network

import (
	"reflect"
	"testing"

	"github.com/lodgehv/lodge/internal/deffile/deffiletest"
)

func TestManual(t *testing.T) {
	deffiletest.CheckManual(t, "../../../data/man/lodge-network.5", reflect.TypeFor[Network]())
}
