def evaluate(config, workdir):
    raise NotImplementedError
