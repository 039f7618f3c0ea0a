module towline.test/verbs

go 1.26.0
