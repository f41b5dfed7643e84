29252 350838970 /tmp/feed/infernet-before up --data-dir /tmp/feed/d/before -
29475 782243 postgres: checkpointer                                      
29476 7016972 postgres: background writer                                 
29479 7463832 postgres: walwriter                                         
29480 1868184 postgres: autovacuum launcher                               
29481 1575851 postgres: logical replication launcher                      
29580 97667882 postgres: authenticator postgres [local] idle               
29591 4881950 postgres: authenticator postgres [local] idle               
29592 3684864 postgres: authenticator postgres [local] idle               
29594 62614235 postgres: authenticator postgres [local] idle               
29451 40931442 /usr/lib/postgresql/15/bin/postgres -D /tmp/feed/d/before/po
t29252 350838970 thread
t29261 171966843 thread
t29262 141209697 thread
