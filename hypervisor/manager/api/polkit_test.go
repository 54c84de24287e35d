package api

func polkitScene() int { return 1 }

func caller() int { return 1 }
