10177 19909504 /tmp/feed/infernet-after-r up --data-dir /tmp/feed/d/after-r
10289 665198 postgres: checkpointer                                      
10290 6158095 postgres: background writer                                 
10294 6859356 postgres: walwriter                                         
10295 1407500 postgres: autovacuum launcher                               
10296 1186427 postgres: logical replication launcher                      
10335 96760840 postgres: authenticator postgres [local] idle               
10337 134388966 postgres: authenticator postgres [local] idle               
10338 2549748 postgres: authenticator postgres [local] idle               
10339 63769154 postgres: authenticator postgres [local] idle               
10288 32968253 /usr/lib/postgresql/15/bin/postgres -D /tmp/feed/d/after-r/p
t10177 19909504 thread
t10180 111616644 thread
t10181 109477928 thread
