"""Tries a site out before a study is queued there.

`examination` gets a small pilot and runs real jobs on it, `probes` is what it calls on the site beside
them, `findings` is what it makes of what they have seen, `container` of the container of the ranks.
`runtime.site_probe` is what its jobs run.
"""
