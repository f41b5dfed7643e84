31189 309396633 /tmp/feed/infernet-after up --data-dir /tmp/feed/d/after --p
31475 942390 postgres: checkpointer                                      
31476 7139179 postgres: background writer                                 
31479 7888566 postgres: walwriter                                         
31480 1571063 postgres: autovacuum launcher                               
31481 1417849 postgres: logical replication launcher                      
31559 85376415 postgres: authenticator postgres [local] idle               
31567 327855155 postgres: authenticator postgres [local] idle               
31568 2997220 postgres: authenticator postgres [local] idle               
31569 56537289 postgres: authenticator postgres [local] idle               
31470 31674329 /usr/lib/postgresql/15/bin/postgres -D /tmp/feed/d/after/pos
t31189 309396633 thread
t31192 465694173 thread
t31193 403808622 thread
